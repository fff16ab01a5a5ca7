"""Extraction under faults: killed in the middle, broken files, paths that lead out, addresses that lie, memory that must stay bounded."""

import functools
import http.server
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from test_store import forked

from sunorecsys.embeddings import content, download
from sunorecsys.embeddings.audio import Clip
from sunorecsys.embeddings.encoder import Encoder, EncoderError, MfccEncoder, RandomVectors
from sunorecsys.embeddings.extract import ahead, embed_files, extract, read_failed, store_of
from sunorecsys.embeddings.store import EmbeddingStore, StoreError, hold
from sunorecsys.embeddings.vectors import read_vectors
from sunorecsys.schema import Col
from sunorecsys.workspace import Locked

RATE = 16_000
ENCODER = MfccEncoder(window_s=1.0)


def clip(seed: int, seconds: float = 1.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (.3 * np.sin(2 * np.pi * (200 + 37 * seed) * t) + .05 * np.random.default_rng(seed).standard_normal(len(t))).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with twenty songs in `audio/`, old enough for their hashes to be remembered."""
    root = tmp_path / "platform"
    (root / "audio").mkdir(parents=True)
    for i in range(20):
        path = root / f"audio/{i}.flac"
        soundfile.write(path, clip(i), RATE)
        os.utime(path, (1e9, 1e9))
    return root


def catalogue(n: int = 20) -> pd.DataFrame:
    return pd.DataFrame({Col.SONG: [f"s{i}" for i in range(n)], Col.AUDIO: [f"audio/{i}.flac" for i in range(n)],
                         Col.PROMPT: [f"prompt {i}" for i in range(n)]})


KILLED = """
import json, pathlib, random
import pandas as pd
from sunorecsys.embeddings import extract as ex
from sunorecsys.embeddings.encoder import MfccEncoder
root, rng = sys.argv[1], random.Random(0)
ex.SHARD_ROWS = 3
class Slow(MfccEncoder):
    def encode_windows(self, windows):
        time.sleep(.02 * len(windows))
        return super().encode_windows(windows)
songs = pd.DataFrame({"song_id": [f"s{i}" for i in range(21)], "audio": [f"audio/{i}.flac" for i in range(21)]})
def work(encoder):
    store = ex.store_of(root + "/embeddings", encoder)
    done = ex.extract(songs, encoder, store, root=root, batch_size=3, n_decoders=2, progress=False)
    print(len(done.embedded), len(done.unchanged), done.failed["song_id"].tolist(), sep=";")
def rows(encoder):
    store = ex.store_of(root + "/embeddings", encoder)
    got, missing = store.vectors(store.ids())
    assert not missing.any() and abs((got ** 2).sum(1) - 1).max(initial=0) < 1e-4
    print(store.manifest["rows"], len(store.ids()), sep=";")
def written():
    found = list(pathlib.Path(root).glob("embeddings/*/manifest.json"))
    return json.loads(found[0].read_text())["rows"] if found else 0
for kill in range(3):
    before = written()
    pid = begin(work, Slow(window_s=1.))
    while written() == before and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(.005)
    time.sleep(rng.uniform(0, .05))
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    assert wait(begin(rows, MfccEncoder(window_s=1.))) == 0
assert wait(begin(work, MfccEncoder(window_s=1.))) == 0
"""


def test_killed_and_resumed(root: Path, tmp_path: Path) -> None:
    """After every kill the store is whole; nothing is embedded twice; at the end it is as if nobody had killed anything."""
    *killed, last = [line.split(";") for line in forked(KILLED, root).splitlines() if line.count(";") == 1 or line.endswith("]")]
    rows = [int(x[0]) for x in killed]
    assert rows == sorted(rows) and 0 < rows[0] < rows[-1] <= 20 and all(x[0] == x[1] for x in killed), "a row was lost or written twice"
    assert int(last[0]) + int(last[1]) == 20 and last[2] == "['s20']"
    assert int(last[1]) == rows[-1], "what was embedded before the kill was embedded again"
    calm = store_of(tmp_path / "calm", ENCODER)
    extract(catalogue(), ENCODER, calm, root=root)
    ids = [f"s{i}" for i in range(20)]
    np.testing.assert_allclose(store_of(root / "embeddings", ENCODER).vectors(ids)[0], calm.vectors(ids)[0], atol=1e-6)


def test_second_run_reads_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(root / "embeddings", ENCODER)
    extract(catalogue(), ENCODER, store, root=root)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file that had not changed was read")

    monkeypatch.setattr(content, "file_hash", never)
    monkeypatch.setattr(content, "read_audio", never)
    again = extract(catalogue(), ENCODER, EmbeddingStore.open(store.folder), root=root)
    assert (len(again.embedded), len(again.unchanged), len(again.failed)) == (0, 20, 0)


def test_changed_file_gets_a_new_row(root: Path) -> None:
    store = store_of(root / "embeddings", ENCODER)
    extract(catalogue(), ENCODER, store, root=root)
    old, pin = store.vectors(["s3"])[0], store.pin()
    soundfile.write(root / "audio/3.flac", clip(99), RATE)
    os.replace(root / "audio/4.flac", root / "audio/four.flac")
    songs = catalogue().replace({Col.AUDIO: {"audio/4.flac": "audio/four.flac"}})
    again = extract(songs, ENCODER, store, root=root)
    assert again.embedded == ["s3"] and store.manifest["rows"] == 21, "a renamed file is the same song"
    assert not np.allclose(store.vectors(["s3"])[0], old)
    assert np.array_equal(EmbeddingStore.open(store.folder, pin=pin).vectors(["s3"])[0], old)


def bad_files(root: Path) -> dict[str, str]:
    """Name of a bad file -> a word of its reason."""
    x = clip(0)
    for name, data in {"silent": x * 0, "quiet": x * 1e-5, "one": x[:1], "none": x[:0], "short": x[:3000]}.items():
        soundfile.write(root / f"audio/{name}.wav", data, RATE, subtype="FLOAT")
    soundfile.write(root / "audio/nan.wav", np.where(np.arange(len(x)) == 9, np.nan, x), RATE, subtype="FLOAT")
    (root / "audio/page.wav").write_text("<!doctype html><html>not found</html>")
    (root / "audio/empty.wav").touch()
    (root / "audio/noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (root / "audio/folder.wav").mkdir()
    os.mkfifo(root / "audio/pipe.wav")
    os.symlink("loop.wav", root / "audio/loop.wav")
    shutil.copy(root / "audio/0.flac", root.parent / "secret.wav")
    os.symlink(root.parent / "secret.wav", root / "audio/link.wav")
    return {"silent": "silent", "quiet": "silent", "one": "no sound", "none": "no sound", "short": "too short", "nan": "NaN",
            "page": "HTML", "empty": "0 bytes", "noise": "", "folder": "not a file", "pipe": "not a file", "loop": "",
            "link": "leads out", "gone": "does not exist"}


def test_bad_files_never_become_vectors(root: Path) -> None:
    """Each is listed with its reason, is not tried again, and is tried again when it was mended or when asked for."""
    bad = bad_files(root)
    songs = pd.concat([catalogue(), pd.DataFrame({Col.SONG: list(bad), Col.AUDIO: [f"audio/{b}.wav" for b in bad]}),
                       pd.DataFrame({Col.SONG: ["up", "abs", "null", "blank"],
                                     Col.AUDIO: ["../secret.wav", str(root.parent / "secret.wav"), None, " "]})], ignore_index=True)
    bad |= {"up": "leads out", "abs": "leads out", "null": "no audio", "blank": "no audio"}
    store = store_of(root / "embeddings", ENCODER)
    done = extract(songs, ENCODER, store, root=root, n_decoders=2, batch_size=4)
    assert len(done.embedded) == 20 and set(store.ids()) == {f"s{i}" for i in range(20)}
    reasons = dict(zip(done.failed[Col.SONG], done.failed["reason"], strict=True))
    assert reasons.keys() == bad.keys() and all(says in reasons[b] and reasons[b] for b, says in bad.items()), reasons
    assert read_failed(store.folder).shape == (len(bad), 4)
    mended = root / "audio/page.wav"
    soundfile.write(mended, clip(50), RATE)
    again = extract(songs, ENCODER, store, root=root)
    assert again.embedded == ["page"] and "page" not in set(read_failed(store.folder)[Col.SONG])
    assert len(again.failed) == len(bad) - 1


def test_known_failures_are_not_decoded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "audio/0.flac").write_text("no sound at all")
    store, tried = store_of(root / "embeddings", ENCODER), []
    read = content.read_audio
    monkeypatch.setattr(content, "read_audio", lambda path, rate: tried.append(path.name) or read(path, rate))
    for retry, want in ((False, 20), (False, 0), (True, 1)):
        tried.clear()
        done = extract(catalogue(), ENCODER, store, root=root, retry=retry)
        assert len(tried) == want and done.failed[Col.SONG].tolist() == ["s0"]


class Pages(http.server.SimpleHTTPRequestHandler):
    """The folder, and addresses that lie; counts what was asked for."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/busy"):
            self.send_error(503)
        elif self.path.startswith("/html"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html><html>not found</html>")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(root: Path) -> Iterator[str]:
    Pages.asked = []
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(root)))
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_address[1]}"
    http_server.shutdown()
    http_server.server_close()


def test_addresses(root: Path, server: str) -> None:
    """Fetched once, though the cache is deleted; final failures are kept without the secrets of the address and not asked for again."""
    songs = pd.DataFrame({Col.SONG: ["a", "b", "page", "gone", "file"], Col.AUDIO: [
        f"{server}/audio/0.flac", f"{server}/audio/1.flac?token=secret", f"{server}/html.mp3?token=secret", f"{server}/gone.flac",
        f"file://{root}/audio/0.flac"]})
    store = store_of(root / "embeddings", ENCODER)
    done = extract(songs, ENCODER, store, root=root, n_decoders=3)
    assert done.embedded == ["a", "b"] and done.failed[Col.SONG].tolist() == ["page", "gone", "file"]
    x, _ = soundfile.read(root / "audio/0.flac", dtype="float32")
    np.testing.assert_allclose(store.vectors(["a"])[0], ENCODER.encode_audio([x]), atol=1e-5)
    assert "secret" not in read_failed(store.folder).to_csv() + pd.read_parquet(root / "embeddings/files.parquet").to_csv()
    shutil.rmtree(root / "embeddings/downloads")
    Pages.asked.clear()
    again = extract(songs, ENCODER, store, root=root)
    assert again.unchanged == ["a", "b"] and len(again.failed) == 3 and Pages.asked == []


def test_a_host_that_is_gone_costs_three_songs_and_is_asked_again_the_next_time(
        root: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda s: None)
    songs = pd.DataFrame({Col.SONG: [f"s{i}" for i in range(20)], Col.AUDIO: [f"{server}/busy/{i}.flac" for i in range(20)]})
    songs.loc[20] = ["file", "audio/0.flac"]
    store = store_of(root / "embeddings", ENCODER)
    for _ in range(2):
        Pages.asked.clear()
        done = extract(songs, ENCODER, store, root=root, n_decoders=1)
        assert len(done.failed) == 20 and len(Pages.asked) == 3 * 4, "not three songs with four attempts each"
        assert done.failed["reason"].str.contains("503").sum() == 3
        assert done.failed["reason"].str.contains("127.0.0.1 failed 3 songs in a row").sum() == 17
    songs[Col.AUDIO] = [f"{server}/audio/{i % 12}.flac" for i in range(21)]
    assert len(extract(songs.iloc[:12], ENCODER, store, root=root).embedded) == 12 and done.unchanged == ["file"]


def test_prompts(root: Path) -> None:
    words = RandomVectors(8)
    store = store_of(root / "embeddings", words, "text")
    songs = catalogue(6).assign(prompt=["a" * 100_000, "夜のジャズ 🎷", "", None, " \n", "techno"])
    done = extract(songs, words, store, modality="text")
    assert done.embedded == ["s0", "s1", "s5"] and set(done.failed["reason"]) == {"no prompt"}
    assert extract(songs.assign(prompt="techno"), words, store, modality="text").unchanged == ["s5"]


def test_a_broken_encoder_is_an_error_and_not_a_catalogue_of_failures(root: Path) -> None:
    class Broken(MfccEncoder):
        def encode_windows(self, windows: np.ndarray) -> np.ndarray:
            raise EncoderError("the weights are of another shape")

    broken = Broken(window_s=1.0)
    store = store_of(root / "embeddings", broken)
    with pytest.raises(EncoderError, match="another shape"):
        extract(catalogue(), broken, store, root=root)
    assert read_failed(store.folder).empty
    assert len(extract(catalogue(), ENCODER, store, root=root).embedded) == 20, "the lock was not released"


def test_wrong_store_and_second_extraction(root: Path) -> None:
    store = store_of(root / "embeddings", ENCODER)
    with pytest.raises(StoreError, match="not audio of mfcc"):
        extract(catalogue(), MfccEncoder(window_s=2.0), store, root=root)
    with hold(store, "the weekly extraction"), pytest.raises(Locked, match="the weekly extraction"):
        extract(catalogue(), ENCODER, EmbeddingStore.open(store.folder), root=root)
    with pytest.raises(ValueError, match="each 'song_id' once"):
        extract(pd.concat([catalogue(), catalogue()]), ENCODER, store, root=root)
    (store.folder / "failed.parquet").write_text("?")
    with pytest.raises(StoreError, match="failed.parquet is damaged"):
        extract(catalogue(), ENCODER, store, root=root)


def test_limit_goes_on_where_it_stopped(root: Path) -> None:
    store, got = store_of(root / "embeddings", ENCODER), []
    (root / "audio/2.flac").unlink()
    for _ in range(3):
        done = extract(catalogue(), ENCODER, store, root=root, limit=7)
        got.append((len(done.embedded), len(done.unchanged), done.left))
    assert got == [(6, 0, 13), (7, 6, 6), (6, 13, 0)]


def test_what_waits_is_bounded_in_bytes() -> None:
    """Long clips: the threads stop while 4 MB wait, though a hundred results might."""
    lock, alive, most = threading.Lock(), 0, 0

    def decode(i: int) -> np.ndarray:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return np.zeros(250_000, np.float32)

    results = ahead(decode, range(60), n_threads=3, n_ahead=100, max_bytes=4_000_000, size=lambda r: r.nbytes)
    for i, _ in enumerate(results):
        if i % 10 == 0:
            time.sleep(.02)  # let them run as far as they may
        with lock:
            alive -= 1
    assert most <= 4 + 3 + 1


def test_threads_end_when_the_consumer_stops() -> None:
    def decoding() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("decode") and t not in before]

    before = set(threading.enumerate())
    results = ahead(lambda i: i, range(10_000), n_threads=4, size=lambda r: 1, max_bytes=2)
    assert next(results) == 0 and decoding()
    results.close()
    for thread in decoding():
        thread.join(timeout=10)
    assert not decoding()


def test_order_does_not_depend_on_threads(root: Path, tmp_path: Path) -> None:
    stores = []
    for n in (1, 4):
        stores.append(store_of(tmp_path / str(n), ENCODER))
        extract(catalogue(), ENCODER, stores[-1], root=root, n_decoders=n, batch_size=6)
    assert stores[0].pin() == stores[1].pin()


def test_files_without_a_workspace(root: Path, server: str, tmp_path: Path) -> None:
    listed = [{"song_id": 1, "audio_url": f"{server}/audio/0.flac"}, {"id": "two", "path": "audio/1.flac"}, {"id": "bad", "path": "../x"}]
    (root / "songs.json").write_text(json.dumps(listed))
    for name in ("v.json", "v.npy"):
        done = embed_files(root / "songs.json", tmp_path / name, ENCODER, progress=False)
        ids, x = read_vectors(tmp_path / name)
        assert ids == ["1", "two"] and x.shape == (2, 104) and done.failed[Col.SONG].tolist() == ["bad"]
    assert pd.read_parquet(tmp_path / "v.failed.parquet")[Col.SONG].tolist() == ["bad"]
    part = embed_files(root / "songs.json", tmp_path / "w.json", ENCODER, limit=1)
    assert part.left == 2 and read_vectors(tmp_path / "w.json")[0] == ["1"]
    rest = embed_files(root / "songs.json", tmp_path / "w.json", ENCODER)
    assert rest.unchanged == ["1"] and read_vectors(tmp_path / "w.json")[0] == ["1", "two"]


def test_every_clip_meets_its_own_song(root: Path) -> None:
    """A wrong pairing of ids and vectors is the quietest fault of all."""
    class Loudness(Encoder):
        name, sampling_rate, dim, window_s = "loudness", RATE, 2, 1.0
        fingerprint = "00000000deadbeef"

        def encode_windows(self, windows: np.ndarray) -> np.ndarray:
            return np.stack([np.abs(windows).max(1), np.ones(len(windows))], 1).astype(np.float32)

    for i in range(20):
        soundfile.write(root / f"audio/{i}.flac", clip(0) / np.abs(clip(0)).max() * (i + 1) / 32, RATE)
    (root / "audio/7.flac").write_text("broken")
    encoder = Loudness()
    store = store_of(root / "embeddings", encoder)
    extract(catalogue(), encoder, store, root=root, batch_size=3, n_decoders=3)
    v, missing = store.vectors([f"s{i}" for i in range(20)])
    assert np.flatnonzero(missing).tolist() == [7]
    loud = v[:, 0] / np.where(missing, 1, v[:, 1])
    np.testing.assert_allclose(loud[~missing], (np.arange(20)[~missing] + 1) / 32, atol=1e-3)


def test_a_clip_that_fails_its_own_check_is_no_content(tmp_path: Path) -> None:
    known = content.Known({}, {}, content.FileHashes(tmp_path / "files.parquet"))
    soundfile.write(tmp_path / "still.wav", np.zeros(RATE), RATE)
    look = content.listen("s", "still.wav", known, tmp_path, tmp_path / "cache", RATE)
    assert look.content is None and look.reason == "silent" and look.hash
    assert Clip(np.zeros(RATE, np.float32), RATE, 1.0).failure == "silent"
