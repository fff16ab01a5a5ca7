"""The vector index: exact against numpy, the same alone and in a batch, songs added and replaced, graphs, damaged files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunorecsys.embeddings.encoder import unit_rows
from sunorecsys.embeddings.index import VectorIndex, recall_of
from sunorecsys.embeddings.store import StoreError

def mixture(n: int, dim: int = 16, clusters: int = 20, seed: int = 0) -> np.ndarray:
    centres = np.random.default_rng(99).normal(size=(clusters, dim))
    rng = np.random.default_rng(seed)
    return unit_rows(centres[rng.integers(0, clusters, n)] + .5 * rng.normal(size=(n, dim)))


def names(n: int) -> np.ndarray:
    return np.array([f"s{i}" for i in range(n)], object)


def truth(vectors: np.ndarray, queries: np.ndarray, k: int, barred: list[set[int]] | None = None) -> np.ndarray:
    """Rows of the k best by float64 products rounded to float32, ties to the lower row; −1 where there are fewer."""
    scores = (unit_rows(queries).astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    for row, out in zip(scores, barred or [], strict=False):
        row[list(out)] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(scores, best, axis=1) > -np.inf, best, -1)


@pytest.fixture(scope="module", params=["exact", "graph"])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    x = mixture(4000)
    return VectorIndex.build(names(4000), x, exact_up_to=10_000 if request.param == "exact" else 100)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exact_is_what_numpy_finds(data: st.DataObject) -> None:
    """Any sizes, with many equal vectors, exclusions and k beyond the number of songs."""
    n, kinds = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = mixture(kinds, dim=4)[rng.integers(0, kinds, n)]
    q, k = mixture(data.draw(st.integers(1, 30)), dim=4, seed=5), data.draw(st.integers(1, 130))
    barred = [set(rng.integers(0, n, rng.integers(0, n + 1)).tolist()) for _ in q]
    want = truth(x, q, k, barred)
    want = np.pad(want, ((0, 0), (0, k - want.shape[1])), constant_values=-1)
    got, scores = VectorIndex.build(names(n), x).search(q, k, exclude=[[f"s{i}" for i in b] + ["unknown"] for b in barred])
    assert np.array_equal(got, np.append(names(n), None)[want])
    assert np.array_equal(np.isneginf(scores), want < 0) and scores.dtype == np.float32


def test_alone_as_in_a_batch(index: VectorIndex) -> None:
    """To the last bit, with exclusions of very different length in one batch."""
    q = mixture(60, seed=1)
    out = [[f"s{i}" for i in range(0, 40 * j, 3)] for j in range(60)]
    ids, scores = index.search(q, 10, exclude=out)
    for i in range(0, 60, 7):
        a, b = index.search(q[i], 10, exclude=[out[i]])
        assert np.array_equal(a[0], ids[i]) and np.array_equal(b[0], scores[i])
    assert not any(set(row) & set(o) for row, o in zip(ids, out, strict=True))


def test_added_is_as_built() -> None:
    x, q = mixture(900), mixture(50, seed=2)
    whole = VectorIndex.build(names(900), x)
    grown = VectorIndex.build(names(900)[:500], x[:500])
    grown.add(names(900)[500:700], x[500:700])
    grown.add(names(900)[700:], x[700:])
    for a, b in zip(whole.search(q, 10), grown.search(q, 10), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("exact_up_to", [10_000, 100])
def test_replaced_songs_are_found_where_they_are_now(exact_up_to: int, tmp_path: Path) -> None:
    """Half of the songs move; nothing of the old vectors is ever found, before and after saving."""
    x, moved = mixture(1200), mixture(1200, seed=3)
    index = VectorIndex.build(names(1200), x, exact_up_to=exact_up_to)
    index.add(names(1200)[::2], moved[::2])
    index.save(tmp_path / "index")
    now = x.copy()
    now[::2] = moved[::2]
    place = np.concatenate([np.arange(1, 1200, 2), np.arange(0, 1200, 2)])  # ties go to the song that was added first
    want = names(1200)[place][truth(now[place], now[:300], 1)]
    for i in (index, VectorIndex.load(tmp_path / "index")):
        got, scores = i.search(now[:300], 1)
        assert (got == want).mean() > (.97 if exact_up_to == 100 else .9999)
        assert int(i.alive.sum()) == 1200 and len(i.ids) == 1800
        every, _ = i.search(now[:20], 1200, exact=True)
        assert all(set(row) == set(names(1200)) for row in every), "a song is missing or is found twice"


def test_graph_reaches_the_recall_that_was_asked_for() -> None:
    x = mixture(6000, clusters=60)
    index = VectorIndex.build(names(6000), x, exact_up_to=5999, min_recall=.97)
    assert index.recall is not None and index.recall >= .97
    q = mixture(300, clusters=60, seed=4)
    found, want = index.search(q, 10)[0], index.search(q, 10, exact=True)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)]) > .93
    assert recall_of(index, seed=1) > .93
    assert VectorIndex.build(names(6000), x, exact_up_to=6000).recall is None


def test_similar_leaves_out_itself(index: VectorIndex) -> None:
    asked = ["s5", "s17", "s3999"]
    ids, scores = index.similar(asked, 5)
    assert not any(a in row for a, row in zip(asked, ids, strict=True)) and (np.diff(scores, axis=1) <= 0).all()


def test_loaded_answers_the_same(index: VectorIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "i")
    back, q = VectorIndex.load(tmp_path / "i"), mixture(100, seed=6)
    for a, b in zip(index.search(q, 20), back.search(q, 20), strict=True):
        assert np.array_equal(a, b)
    back.add(["new"], q[:1])
    assert back.search(q[:1], 1)[0][0, 0] == "new" and "new" not in index.ids


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damaged_files_are_named(tmp_path: Path, name: str, how: str) -> None:
    VectorIndex.build(names(50), mixture(50)).save(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data if how == "flip" else data[:len(data) // 2])
    with pytest.raises(StoreError, match=name):
        VectorIndex.load(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"format": 2, "files": {}}'])
def test_foreign_manifest(tmp_path: Path, text: str) -> None:
    VectorIndex.build(names(50), mixture(50)).save(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match="manifest.json"):
        VectorIndex.load(tmp_path)
    assert json.loads(text) != 0


def test_a_folder_of_two_indexes_is_refused(tmp_path: Path) -> None:
    """Ids of one index and vectors of another, each whole: only the manifest knows."""
    for i, n in enumerate((50, 60)):
        VectorIndex.build(names(n), mixture(n)).save(tmp_path / str(i))
    (tmp_path / "1/ids.parquet").write_bytes((tmp_path / "0/ids.parquet").read_bytes())
    with pytest.raises(StoreError, match="ids.parquet"):
        VectorIndex.load(tmp_path / "1")


@pytest.mark.parametrize(("ids", "x", "says"), [
    (["a", "b"], np.eye(2, 16) * 3, r"row 0 \(song 'a'\) has length 3"), (["a", "a"], np.eye(2, 16), "earlier row"),
    (["a"], np.full((1, 16), np.nan), "not finite"), (["a"], np.zeros((1, 16)), "all zeros"), (["a"], np.eye(1, 9), "index of 16")])
def test_bad_rows_change_nothing(ids: list[str], x: np.ndarray, says: str) -> None:
    index, q = VectorIndex.build(names(30), mixture(30)), mixture(5, seed=1)
    before = index.search(q, 5)[0]
    with pytest.raises(StoreError, match=says):
        index.add(ids, x)
    assert np.array_equal(index.search(q, 5)[0], before) and index.index.ntotal == 30


def test_many_twins_do_not_upset_it() -> None:
    """Three thousand copies of one song: still the first ones, in order, and quickly enough."""
    x = np.repeat(mixture(3), 1000, axis=0)
    index = VectorIndex.build(names(3000), x)
    assert index.search(x[1500], 4)[0][0].tolist() == ["s1000", "s1001", "s1002", "s1003"]
    assert index.search(x[1500], 2, exclude=[[f"s{i}" for i in range(1000, 1999)]])[0][0, 0] == "s1999"
