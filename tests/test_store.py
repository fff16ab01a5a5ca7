"""The store of embeddings under faults: killed between any two steps, damaged, written by two, opened at a prefix."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sunorecsys.embeddings.encoder import unit_rows
from sunorecsys.embeddings.store import EmbeddingStore, StoreError, hold, list_stores
from sunorecsys.embeddings.vectors import import_vectors, read_vectors
from sunorecsys.workspace import Locked

TOY = dict(encoder="toy", fingerprint="00000000deadbeef", modality="audio", dim=8, license="none")


def rows(n: int, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(n, 8)))


def filled(root: Path, sizes: tuple[int, ...] = (5, 3)) -> EmbeddingStore:
    """A store with some shards; song i has the i-th row of `rows`."""
    store, at, x = EmbeddingStore.create(root, **TOY), 0, rows(sum(sizes))
    for n in sizes:
        store.append([f"s{i}" for i in range(at, at + n)], [f"h{i}" for i in range(at, at + n)], x[at:at + n])
        at += n
    return store


def forked(code: str, *args: object) -> str:
    """What a script prints that forks its own children; `child(f, *a)` runs f in one and gives its exit status, negative if killed."""
    head = ("import os, signal, sys, time\nimport numpy as np\nfrom sunorecsys.embeddings import store as module\n"
            "from sunorecsys.workspace import Locked\n"
            "def begin(f, *a):\n    pid = os.fork()\n    if pid:\n        return pid\n"
            "    try:\n        f(*a)\n        sys.stdout.flush()\n        os._exit(0)\n"
            "    except BaseException as e:\n        print(repr(e), file=sys.stderr, flush=True)\n        os._exit(1)\n"
            "def wait(pid):\n    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n")
    done = subprocess.run([sys.executable, "-c", head + code, *map(str, args)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


# A child dies by SIGKILL before the n-th call that changes the disk, for every n; another child then looks at what is left.
KILLED = """
def dies(n):
    store, calls = module.EmbeddingStore.open(sys.argv[1]), 0
    def counted(real):
        def call(*a, **k):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **k)
        return call
    for where, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (np, "save")):
        setattr(where, name, counted(getattr(where, name)))
    store.append(["late"], ["h"], np.eye(1, 8))
def look(n):
    store = module.EmbeddingStore.open(sys.argv[1])
    got, missing = store.vectors([f"s{i}" for i in range(8)])
    late = store.vectors(["late"])[0].tolist() if "late" in store.ids() else None
    print(n, bool(missing.any()), float(abs(got - np.load(sys.argv[2])).max()), len(store.ids()), late, sep=";")
for n in range(1, 100):
    status = wait(begin(dies, n))
    assert wait(begin(look, n)) == 0
    if status == 0:
        break
    assert status == -signal.SIGKILL
"""


def test_killed_between_any_two_steps(tmp_path: Path) -> None:
    """Whatever was the last step, all old rows are there, and the new row is there whole or not at all."""
    store = filled(tmp_path)
    np.save(tmp_path / "want.npy", rows(8))
    looks = [line.split(";") for line in forked(KILLED, store.folder, tmp_path / "want.npy").splitlines()]
    assert len(looks) > 8, "the writer was never killed on its way"
    whole = str(np.eye(1, 8).tolist())
    assert all(x[1] == "False" and float(x[2]) == 0 and (x[3], x[4]) in (("8", "None"), ("9", whole)) for x in looks)
    assert looks[0][3] == "8" and looks[-1][3] == "9"
    assert not list(store.folder.glob(".*.tmp-*")), "what killed writers left was not cleared away"


@pytest.mark.parametrize("name", ["000001.npy", "000001.parquet", "000002.npy", "000002.parquet"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone", "other"])
def test_damage_is_named(tmp_path: Path, name: str, how: str) -> None:
    path = filled(tmp_path).folder / name
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"flip": data, "cut": data[:-7], "empty": b"", "other": b"<html>" * 40}[how])
    with pytest.raises(StoreError, match=name) as e:
        EmbeddingStore.open(path.parent).vectors([f"s{i}" for i in range(8)])
    assert str(e.value).count(str(path)) == 1 and "restore it" in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 9}', "\udcff", '{"format": 1, "rows": "8"}'])
def test_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    folder = filled(tmp_path).folder
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StoreError, match="manifest.json"):
        EmbeddingStore.open(folder)
    with pytest.raises(StoreError, match="manifest.json"):
        EmbeddingStore.create(tmp_path, **TOY)


@pytest.mark.parametrize("change", [{"dim": 9}, {"rows": 7}, {"rows": -1}, {"shards": [{}]}, {"encoder": None}, {"modality": 3}])
def test_inconsistent_manifest_is_named(tmp_path: Path, change: dict) -> None:
    path = filled(tmp_path).folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=r"manifest|000001.npy"):
        EmbeddingStore.open(path.parent).vectors(["s0"])


def test_vectors_without_manifest_are_not_begun_anew(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match="manifest.json is missing although there are vectors"):
        EmbeddingStore.create(tmp_path, **TOY)
    assert (store.folder / "000001.npy").exists()


def test_two_writers(tmp_path: Path) -> None:
    """A second writer is refused while the first holds the lock; afterwards it sees the first one's rows."""
    one = filled(tmp_path)
    two = EmbeddingStore.open(one.folder)
    with hold(one, "a long extraction"):
        with pytest.raises(Locked, match="a long extraction"):
            two.append(["x"], ["h"], rows(1))
        one.append(["y"], ["h"], rows(1))
    two.append(["z"], ["h"], rows(1))
    assert {"y", "z"} <= set(two.ids()) and two.manifest["rows"] == 10
    assert EmbeddingStore.open(one.folder).manifest == two.manifest


def test_four_processes_append(tmp_path: Path) -> None:
    """Four processes append ten rows each, waiting for one another: no row is lost and none is torn."""
    store = EmbeddingStore.create(tmp_path, **TOY)
    forked("""
def appends(k):
    store = module.EmbeddingStore.open(sys.argv[1])
    for i in range(10):
        while True:
            try:
                store.append([f"{k}-{i}"], ["h"], np.eye(1, 8))
                break
            except Locked:
                time.sleep(.01)
assert [wait(p) for p in [begin(appends, k) for k in range(4)]] == [0] * 4
""", store.folder)
    after = EmbeddingStore.open(store.folder)
    assert sorted(after.ids()) == sorted(f"{k}-{i}" for k in range(4) for i in range(10)) and after.manifest["rows"] == 40


def test_pinned_prefix_stays(tmp_path: Path) -> None:
    store = filled(tmp_path)
    pin = json.loads(json.dumps(store.pin()))
    store.append(["s0", "new"], ["changed", "h"], rows(2, seed=1))
    then = EmbeddingStore.open(store.folder, pin=pin)
    assert np.array_equal(then.vectors(["s0"])[0], rows(8)[:1]) and "new" not in then.ids() and then.pin() == pin
    assert np.array_equal(store.vectors(["s0"])[0], rows(2, seed=1)[:1])
    for bad in (pin | {"rows": 4}, pin | {"hash": "0" * 64}, pin | {"fingerprint": "1" * 16}):
        with pytest.raises(StoreError):
            EmbeddingStore.open(store.folder, pin=bad)
    with pytest.raises(StoreError, match="to be read"):
        then.append(["x"], ["h"], rows(1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 6), max_size=5), asked=st.lists(st.integers(0, 24), max_size=40))
def test_any_songs_in_any_order(tmp_path: Path, sizes: list[int], asked: list[int]) -> None:
    """`vectors` and `aligned` agree with a dictionary, whatever the shards and the songs asked for."""
    store = filled(tmp_path / str(time.time_ns()), tuple(sizes))
    n = sum(sizes)
    want = np.array([rows(n)[i] if i < n else np.zeros(8) for i in asked], np.float32).reshape(-1, 8)
    for read in (store.vectors, store.aligned):
        got, missing = read([f"s{i}" for i in asked])
        assert np.array_equal(got, want) and missing.tolist() == [i >= n for i in asked] and got.dtype == np.float32


def test_aligned_is_a_view_and_read_only(tmp_path: Path) -> None:
    store = filled(tmp_path)
    view, _ = store.aligned([f"s{i}" for i in range(5)])
    copy, _ = store.aligned(["s4", "s0"])
    assert isinstance(view, np.memmap) and not isinstance(copy, np.memmap)
    assert not view.flags.writeable and not copy.flags.writeable


@pytest.mark.parametrize(("ids", "x", "says"), [
    (["a"], np.full((1, 8), np.nan), r"row 0 \(song 'a'\) is not finite"), (["a"], np.full((1, 8), np.inf), "not finite"),
    (["a"], np.full((1, 8), 1e39), "not finite"), (["a"], np.zeros((1, 8)), "all zeros"), (["a"], np.eye(1, 7), "do not fit"),
    (["a", "a"], np.eye(2, 8), r"row 1 \(song 'a'\) has the id of an earlier row"), ([""], np.eye(1, 8), "has no id"),
    ([None], np.eye(1, 8), "has no id"), ([7], np.eye(1, 8), "has no id"), (["a"], np.eye(2, 8), "1 ids for 2"),
    (["a"], np.eye(1, 8).astype(str), "do not fit"), (["a"], np.eye(1, 8).astype(complex), "do not fit")])
def test_bad_rows_do_not_come_in(tmp_path: Path, ids: list, x: np.ndarray, says: str) -> None:
    store = filled(tmp_path)
    before = store.pin()
    with pytest.raises(StoreError, match=says):
        store.append(ids, ["h"] * len(ids), x)
    assert EmbeddingStore.open(store.folder).pin() == before


def test_import_is_whole_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('{"a": [1, 0], "b": [NaN, 1]}')
    with pytest.raises(StoreError, match=r"v.json: row 1 \(song 'b'\)"):
        import_vectors(tmp_path / "v.json", tmp_path / "e", "mine")
    assert not (tmp_path / "e").exists() and len(list_stores(tmp_path / "e")) == 0
    (tmp_path / "v.json").write_text('{"a": [3, 0], "b": [0, 1]}')
    for _ in range(2):
        store = import_vectors(tmp_path / "v.json", tmp_path / "e", "mine")
    assert store.manifest["rows"] == 2 and np.array_equal(store.vectors(["a"])[0], [[1, 0]])
    assert list_stores(tmp_path / "e")["encoder"].tolist() == ["import:mine"]


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "v.ids.txt").write_text("a\n")
    with pytest.raises(StoreError, match="v.npy"):
        read_vectors(tmp_path / "v.npy")
