"""Decoding and downloading under everything that a catalogue of a million songs contains."""

import gzip
import hashlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from sunorecsys.embeddings.audio import AudioError, Clip, player, read_audio
from sunorecsys.embeddings.download import DownloadError, cached_audio, fetch_audio

REAL = Path(os.environ.get("SUNORECSYS_REAL_DATA", Path(__file__).parents[2] / "shared/data")) / "audio"
RATE = 44_100
RNG = np.random.default_rng(0)
TIME = np.arange(2 * RATE) / RATE
SONG = (.4 * np.sin(2 * np.pi * 441 * TIME) + .05 * RNG.standard_normal(len(TIME))).astype(np.float32)


def make(path: Path, x: np.ndarray = SONG, rate: int = RATE, **kind: str) -> Path:
    soundfile.write(path, x, rate, **kind)
    return path


def make_m4a(path: Path, x: np.ndarray = SONG, options: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w", format="mp4", options=options or {}) as c:
        stream = c.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(x[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        c.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


def pitch(clip: Clip) -> float:
    spectrum = np.abs(np.fft.rfft(clip.samples * np.hanning(len(clip.samples))))
    return float(spectrum.argmax() * clip.rate / len(clip.samples))


# Decoding

FORMATS = {
    "a.wav": {}, "8bit.wav": {"subtype": "PCM_U8"}, "24bit.wav": {"subtype": "PCM_24"}, "float.wav": {"subtype": "FLOAT"},
    "double.wav": {"subtype": "DOUBLE"}, "a.flac": {}, "a.ogg": {"format": "OGG", "subtype": "VORBIS"}, "a.mp3": {"format": "MP3"},
    "a.aiff": {}, "a.w64": {"format": "W64"},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_agrees_with_soundfile(tmp_path: Path, name: str, channels: int) -> None:
    x = np.stack([SONG, .3 * np.roll(SONG, 500)][:channels], axis=1)
    path = make(tmp_path / name, x, **FORMATS[name])
    theirs = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    clip = read_audio(path, RATE)
    assert (clip.samples.dtype, clip.rate, clip.problems, clip.failure) == (np.float32, RATE, (), None)
    assert len(clip.samples) == len(theirs) and np.abs(clip.samples - theirs).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 24_000, 32_000, 48_000])
@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.opus", "a.m4a"])
def test_length_and_pitch_at_every_rate(tmp_path: Path, name: str, rate: int) -> None:
    kinds = {"a.flac": {}, "a.mp3": {"format": "MP3"}, "a.opus": {"format": "OGG", "subtype": "OPUS"}}
    if name == "a.m4a":
        path, source = make_m4a(tmp_path / name), RATE
    else:
        source = 48_000 if name == "a.opus" else RATE # opus knows no 44.1 kHz: the same samples, played faster
        path = make(tmp_path / name, rate=source, **kinds[name])
    clip = read_audio(path, rate)
    assert abs(clip.seconds - len(SONG) / source) < .05 and clip.seconds == len(clip.samples) / rate
    assert abs(pitch(clip) - 441 * source / RATE) < 1
    assert .25 < clip.samples[rate // 2:rate].std() < .32 and not clip.problems # .4 / √2 = .283


VORBIS, OPUS = {"format": "OGG", "subtype": "VORBIS"}, {"format": "OGG", "subtype": "OPUS"}


@pytest.mark.parametrize("name,kind", [("8.wav", {}), ("8.flac", {}), ("8.ogg", VORBIS), ("8.opus", OPUS), ("12.ogg", VORBIS)])
def test_many_channels(tmp_path: Path, name: str, kind: dict) -> None:
    """PyAV's arrays of planar frames of eight channels read beyond their planes: a crash, not an exception."""
    n = int(name.split(".")[0])
    path = make(tmp_path / name, np.stack([SONG * (k + 1) / n for k in range(n)], axis=1), rate=48_000, **kind)
    clip = read_audio(path, 48_000)
    assert not clip.problems and abs(len(clip.samples) - len(SONG)) < 1000
    if kind.get("subtype") != "OPUS": # its low-frequency channel is filtered
        expected = SONG * (n + 1) / 2 / n
        assert np.corrcoef(clip.samples[:len(SONG)], expected[:len(clip.samples)])[0, 1] > .98


def test_in_memory_no_more_than_the_answer(tmp_path: Path) -> None:
    """Three hours in stereo, 1.9 GB of a sparse WAV file; the limit stops the decoder. Measured in a process of its own."""
    path = make(tmp_path / "long.wav", np.zeros((1, 2)))
    with open(path, "r+b") as f:
        f.truncate(44 + 3 * 3600 * RATE * 4)
        for at, size in ((4, path.stat().st_size - 8), (40, path.stat().st_size - 44)):
            f.seek(at)
            f.write(size.to_bytes(4, "little"))
    code = f"""
from resource import RUSAGE_SELF, getrusage
from sunorecsys.embeddings.audio import read_audio
read_audio({str(path)!r}, 16_000, max_seconds=2)
before = getrusage(RUSAGE_SELF).ru_maxrss
clip = read_audio({str(path)!r}, 16_000)
print((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024 - clip.samples.nbytes, clip.seconds, *clip.problems)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    extra, seconds, problems = done.stdout.split(maxsplit=2)
    assert float(seconds) == 1200 and problems.strip() == "silent cut at 1200 s of 10800 s"
    assert int(extra) < 16e6 # one step of growth and some blocks


@pytest.mark.parametrize("name", ["Track: 7.wav", "夜曲 🎹.wav", "-o.wav", "a%20b?.wav", "http:x.wav", "no end", "song.mp3", "cover.png"])
def test_names_do_not_matter(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.wav").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_audio(name, 16_000).seconds == pytest.approx(2)


@pytest.mark.parametrize("name,content,says", [
    ("empty.mp3", b"", "is empty"), ("page.mp3", b"<html><body>" + b"no such song " * 500, "an HTML page"),
    ("error.wav", b'{"error": "expired"}', "it is text"), ("cover.wav", b"\x89PNG\r\n\x1a\n" + bytes(500), "PNG"),
    ("list.mp3", b"#EXTM3U\n#EXTINF:9,\na.wav\n#EXT-X-ENDLIST\n", "it is text"),
    ("concat.mp3", b"ffconcat version 1.0\nfile a.wav\n", "it is text"),
    ("header.wav", b"RIFF\x00\x10\x00\x00WAVE" + bytes(500), "a wav file whose header is broken"),
    ("zeros.flac", bytes(5000), "no sound"),
    ("head.flac", b"fLaC" + bytes(5000), "a flac file"), ("random.mp3", RNG.bytes(30_000), ":"), ("random.bin", RNG.bytes(200), ":"),
    ("page.gz", gzip.compress(b"song", mtime=0), "gzip"),
])
def test_what_is_no_sound_says_what_it_is(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    make(tmp_path / "a.wav") # what the playlists would play
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=says) as e:
        read_audio(path, 16_000)
    assert e.value.path == path and str(path) in str(e.value) and e.value.reason


@pytest.mark.parametrize("x,kind,says", [
    (SONG[:0], {}, "0 samples"), (SONG[:1], {}, "1 samples"), (np.full_like(SONG, np.nan), {"subtype": "FLOAT"}, "at 0.000 s"),
    (np.where(np.arange(len(SONG)) == RATE, np.inf, SONG), {"subtype": "FLOAT"}, "at 1.000 s"),
    (np.where(np.arange(len(SONG)) == len(SONG) - 1, np.nan, SONG), {"subtype": "DOUBLE"}, "NaN"),
])
def test_samples_that_are_no_sound(tmp_path: Path, x: np.ndarray, kind: dict, says: str) -> None:
    with pytest.raises(AudioError, match=says):
        read_audio(make(tmp_path / "a.wav", x, **kind), 16_000)


def test_missing_folder_pipe_and_wrong_rates(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in {"gone.wav": "does not exist", ".": "is not a file", "pipe": "is not a file"}.items():
        with pytest.raises(AudioError, match=says):
            read_audio(tmp_path / path, 16_000)
    path = make(tmp_path / "a.wav")
    for bad in ({"sampling_rate": 0}, {"sampling_rate": 16_000, "max_seconds": 0}, {"sampling_rate": 16_000, "max_seconds": float("nan")}):
        with pytest.raises(ValueError, match="sampling_rate"):
            read_audio(path, **bad)
    data = bytearray(path.read_bytes())
    data[24:28] = (4_000_000_000).to_bytes(4, "little") # a header that claims 4 GHz
    path.write_bytes(data)
    with pytest.raises(AudioError):
        read_audio(path, 16_000)


@pytest.mark.parametrize("name,kind", [("a.wav", {}), ("a.flac", {}), ("a.ogg", VORBIS), ("a.opus", OPUS), ("a.mp3", {"format": "MP3"})])
def test_truncation_is_noticed(tmp_path: Path, name: str, kind: dict) -> None:
    path = make(tmp_path / name, np.tile(SONG, 3), 48_000, **kind)
    whole = read_audio(path, 16_000)
    clip = read_audio(cut(path, .6), 16_000)
    assert whole.problems == () and any(p.startswith("truncated") for p in clip.problems), clip
    assert .4 * whole.seconds < clip.seconds < .7 * whole.seconds


def test_truncated_m4a(tmp_path: Path) -> None:
    """Its table of contents stands at the end, where it is lost, or at the beginning."""
    with pytest.raises(AudioError, match="a mp4 file whose header is broken"):
        read_audio(cut(make_m4a(tmp_path / "a.m4a"), .6), 16_000)
    clip = read_audio(cut(make_m4a(tmp_path / "fast.m4a", options={"movflags": "faststart"}), .6), 16_000)
    assert any(p.startswith("truncated") for p in clip.problems)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
def test_damage_in_the_middle_does_not_stop_it(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, np.tile(SONG, 5), **FORMATS[name])
    data = bytearray(path.read_bytes())
    data[len(data) // 2:len(data) // 2 + 600] = RNG.bytes(600)
    path.write_bytes(data)
    clip = read_audio(path, 16_000)
    assert clip.seconds > 8.5 and np.isfinite(clip.samples).all() and np.abs(clip.samples).max() < 3


def test_any_bytes_give_a_clip_or_an_audio_error(tmp_path: Path) -> None:
    """Random damage at random places of every format: never another exception, never NaN, never a crash."""
    paths = [make(tmp_path / n, SONG[:RATE // 2], **k) for n, k in FORMATS.items()] + [make_m4a(tmp_path / "a.m4a", SONG[:RATE // 2])]
    decoded = 0
    for path in paths:
        whole = path.read_bytes()
        for _ in range(12):
            data = bytearray(whole)
            for at in RNG.integers(0, len(data) if RNG.random() < .5 else 200, RNG.integers(1, 20)):
                data[at] = RNG.integers(256)
            path.write_bytes(data[:RNG.integers(1, len(data) + 1)])
            try:
                clip = read_audio(path, 16_000, max_seconds=5)
            except AudioError:
                continue
            decoded += 1
            assert np.isfinite(clip.samples).all() and clip.seconds <= 5.1
    assert decoded > 20


def test_levels(tmp_path: Path) -> None:
    def told(x: np.ndarray) -> tuple[str, str | None]:
        clip = read_audio(make(tmp_path / "x.flac", x), 16_000)
        return " ".join(clip.problems), clip.failure
    assert told(np.zeros(RATE)) == ("silent", "silent")
    assert told(SONG * 1e-3)[1] == "silent" and told(SONG * .01) == ("", None)
    assert told(np.stack([SONG, -SONG], 1)) == ("silent: its channels cancel each other in mono", "silent")
    assert told((5 * SONG).clip(-1, 1))[0].startswith("clipped: ") and told((5 * SONG).clip(-1, 1))[1] is None
    assert told(SONG / np.abs(SONG).max()) == ("", None) # touches full scale once
    assert told(SONG[:RATE // 4])[1].startswith("too short")


def test_glued_streams_of_two_rates(tmp_path: Path) -> None:
    """Internet radio and bad editors glue Ogg files; the pitch must not jump."""
    kind = {"format": "OGG", "subtype": "VORBIS"}
    t = np.arange(2 * 32_000) / 32_000
    parts = [make(tmp_path / "1.ogg", **kind), make(tmp_path / "2.ogg", .4 * np.sin(2 * np.pi * 441 * t), 32_000, **kind)]
    both = tmp_path / "both.ogg"
    both.write_bytes(b"".join(p.read_bytes() for p in parts))
    clip = read_audio(both, 16_000)
    assert clip.seconds > 1.9 and abs(pitch(clip) - 441) < 1


def test_same_bytes_same_samples(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp3", format="MP3")
    assert np.array_equal(read_audio(path, 16_000).samples, read_audio(path, 16_000).samples)


def test_shows_itself(tmp_path: Path) -> None:
    clip = read_audio(make(tmp_path / "a.wav"), 16_000)
    assert "polygon" in clip._repr_html_() and len(clip._repr_html_()) < 10_000 and repr(clip) == "Clip(2.00 s at 16000 Hz)"
    assert "&lt;b&gt;" in Clip(clip.samples, 16_000, 2.0, ("<b>",))._repr_html_()
    assert len(player(clip).data) < 40_000
    assert Clip(clip.samples[:0], 16_000, 0.0)._repr_html_()


def test_importing_is_light() -> None:
    code = "import sys; import sunorecsys.embeddings.download; print({'av', 'soxr', 'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not here")
def test_real_recordings() -> None:
    paths = sorted(REAL.glob("*.ogg"))
    assert len(paths) == 5
    for path in paths:
        theirs, rate = soundfile.read(path, dtype="float32")
        clip = read_audio(path, rate)
        assert np.abs(clip.samples - theirs).max() < 1e-4 and (clip.problems, clip.failure) == ((), None)
        assert read_audio(path, 16_000).seconds == pytest.approx(len(theirs) / rate, abs=1e-3)


# Downloading

class Site(ThreadingHTTPServer):
    """A server that does what the path says; `asked` lists (path, Range, Authorization)."""

    daemon_threads = True

    def __init__(self, song: bytes):
        super().__init__(("127.0.0.1", 0), Page)
        self.song, self.asked, self.version = song, [], '"v1"'
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, path: str) -> int:
        return sum(p.partition("?")[0] == path for p, *_ in self.asked)


class Page(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, code: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for k, v in {"Content_Length": len(body) if length is None else length, "Connection": "close", **headers}.items():
            if v is not None:
                self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body)

    def do_GET(self) -> None:
        site, path = self.server, self.path.partition("?")[0]
        site.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        try:
            getattr(self, path.removeprefix("http://songs.invalid").strip("/").split("/")[0].partition(".")[0] or "song")(site, path)
        except (BrokenPipeError, ConnectionResetError):
            pass # the client has left, as it should

    def song(self, site: Site, path: str) -> None:
        self.reply(200, site.song, ETag=site.version)

    def half(self, site: Site, path: str) -> None:
        begin, total = int((self.headers.get("Range") or "bytes=0-")[6:-1]), len(site.song)
        if begin and self.headers.get("If-Range") == site.version:
            return self.reply(206, site.song[begin:], Content_Range=f"bytes {begin}-{total - 1}/{total}", ETag=site.version)
        self.reply(200, site.song[:total // 2 if site.count(path) == 1 else total], total, ETag=site.version)

    def changed(self, site: Site, path: str) -> None:
        self.half(site, path)
        site.song, site.version = site.song[::-1][-8:][::-1] + site.song[8:-1] + b"!", '"v2"'

    def blind(self, site: Site, path: str) -> None: # stops half way and knows no ranges
        self.reply(200, site.song[:len(site.song) // 2 if site.count(path) == 1 else None], len(site.song))

    def norest(self, site: Site, path: str) -> None:
        if self.headers.get("Range"):
            return self.reply(416, Content_Range=f"bytes */{len(site.song)}")
        self.half(site, path)

    def always(self, site: Site, path: str) -> None:
        self.reply(200, site.song[:100], len(site.song), ETag=site.version)

    def hangs(self, site: Site, path: str) -> None:
        site.stop.wait(5)

    def stalls(self, site: Site, path: str) -> None:
        self.reply(200, site.song[:1000], len(site.song))
        site.stop.wait(5)

    def trickles(self, site: Site, path: str) -> None:
        self.reply(200, site.song[:1000], len(site.song))
        while not site.stop.wait(.02):
            self.wfile.write(b"x")

    def headers_trickle(self, site: Site, path: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not site.stop.wait(.02):
            self.wfile.write(b"x")

    def circle(self, site: Site, path: str) -> None:
        self.reply(302, Location="/circle?again")

    def hop(self, site: Site, path: str) -> None:
        self.reply(301, Location=f"http://localhost:{site.server_port}/song")

    def tofile(self, site: Site, path: str) -> None:
        self.reply(302, Location="file:///song.flac")

    def toftp(self, site: Site, path: str) -> None:
        self.reply(307, Location="ftp://127.0.0.1/song.flac")

    def nowhere(self, site: Site, path: str) -> None:
        self.reply(302)

    def page(self, site: Site, path: str) -> None:
        self.reply(200, b"<!DOCTYPE html><title>Sign in</title>" + b" " * 10_000, Content_Type="audio/mpeg")

    def json(self, site: Site, path: str) -> None:
        self.reply(200, b'{"error": "expired"}')

    def empty(self, site: Site, path: str) -> None:
        self.reply(200)

    def gone(self, site: Site, path: str) -> None:
        self.reply(404, b"no")

    def down(self, site: Site, path: str) -> None:
        self.reply(503)

    def busy(self, site: Site, path: str) -> None:
        self.reply(500) if site.count(path) < 3 else self.song(site, path)

    def later(self, site: Site, path: str) -> None:
        self.reply(429, Retry_After="60") if site.count(path) == 1 else self.song(site, path)

    def claims(self, site: Site, path: str) -> None: # more than it sends
        self.reply(200, site.song, len(site.song) + 1000)

    def endless(self, site: Site, path: str) -> None: # neither a length nor an end
        self.reply(200, site.song, None, Content_Length=None)
        while not site.stop.is_set():
            self.wfile.write(bytes(10_000))

    def chunked(self, site: Site, path: str) -> None:
        self.reply(200, b"", Transfer_Encoding="chunked", Content_Length=None)
        for part in (site.song[:500], site.song[500:]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if "cut" not in path:
            self.wfile.write(b"0\r\n\r\n")

    def gzipped(self, site: Site, path: str) -> None:
        self.reply(200, gzip.compress(site.song), Content_Encoding="gzip")

    def garbage(self, site: Site, path: str) -> None:
        self.wfile.write(b"\x00\x01 nonsense\r\n\r\n")
        self.close_connection = True


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    server = Site(make(tmp_path / "song.flac").read_bytes())
    thread = threading.Thread(target=server.serve_forever, args=[.01], daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


def fetch(url: str, cache: Path, **more: float) -> Path:
    return fetch_audio(url, cache, **{"timeout_s": .3, "total_s": 5, "retries": 2, "backoff_s": .005, **more})


def left(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "partial").iterdir())


def test_fetched_once(site: Site, tmp_path: Path) -> None:
    path = fetch(f"{site.url}/song.flac#t=10", tmp_path / "c")
    assert path.read_bytes() == site.song and path.name == hashlib.sha256(site.song).hexdigest() + ".flac"
    assert fetch(f"{site.url}/song.flac", tmp_path / "c") == path == cached_audio(f"{site.url}/song.flac", tmp_path / "c")
    assert len(site.asked) == 1 and left(tmp_path / "c") == []
    assert fetch(f"{site.url}/song/other%20name ö.flac?b=c d", tmp_path / "c") == path and len(site.asked) == 2
    assert site.asked[1][0] == "/song/other%20name%20%C3%B6.flac?b=c%20d"
    path.unlink() # somebody cleaned up
    assert cached_audio(f"{site.url}/song.flac", tmp_path / "c") is None
    assert fetch(f"{site.url}/song.flac", tmp_path / "c").read_bytes() == site.song and len(site.asked) == 3


def test_resumes(site: Site, tmp_path: Path) -> None:
    assert fetch(f"{site.url}/half", tmp_path / "c").read_bytes() == site.song
    assert [r for _, r, _ in site.asked] == [None, f"bytes={len(site.song) // 2}-"]


def test_resumes_in_the_next_call(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"ended after [\d,]+ of [\d,]+ bytes"):
        fetch(f"{site.url}/half", tmp_path / "c", retries=0)
    assert len(left(tmp_path / "c")) == 2
    assert fetch(f"{site.url}/half", tmp_path / "c").read_bytes() == site.song
    assert site.asked[1][1] == f"bytes={len(site.song) // 2}-" and left(tmp_path / "c") == []


def test_two_versions_are_never_glued(site: Site, tmp_path: Path) -> None:
    path = fetch(f"{site.url}/changed", tmp_path / "c")
    assert site.asked[1][1] is not None and path.read_bytes()[-1:] == b"!" and len(path.read_bytes()) == len(site.song)


@pytest.mark.parametrize("page,requests", [("blind", 2), ("norest", 3), ("busy", 3), ("chunked", 1), ("hop", 2)])
def test_arrives_all_the_same(site: Site, tmp_path: Path, page: str, requests: int) -> None:
    assert fetch(f"{site.url}/{page}", tmp_path / "c").read_bytes() == site.song
    assert len(site.asked) == requests and left(tmp_path / "c") == []


@pytest.mark.parametrize("page,says,requests", [
    ("page", "an HTML page", 1), ("json", "no sound but text", 1), ("empty", "is empty", 1), ("gone", "404 Not Found", 1),
    ("circle", "redirected more than 5 times", 6), ("tofile", "redirected to file:", 1), ("toftp", "redirected to ftp:", 1),
    ("nowhere", "redirected more than", 6), ("gzipped", "gzip-compressed", 1), ("down", "503 Service Unavailable; 3 attempts", 3),
    ("hangs", "does not answer; 3 attempts", 3), ("garbage", "connection failed", 3),
])
def test_refused(site: Site, tmp_path: Path, page: str, says: str, requests: int) -> None:
    with pytest.raises(DownloadError, match=says) as e:
        fetch(f"{site.url}/{page}", tmp_path / "c")
    assert len(site.asked) == requests and left(tmp_path / "c") == []
    assert str(e.value).startswith(f"{site.url}/{page}: ") and not list((tmp_path / "c").glob("*.*"))


@pytest.mark.parametrize("page,says", [("stalls", "does not answer"), ("claims", "ended after"), ("always", "ended after"),
                                       ("chunked/cut", "failed")])
def test_incomplete_is_never_kept(site: Site, tmp_path: Path, page: str, says: str) -> None:
    with pytest.raises(DownloadError, match=says):
        fetch(f"{site.url}/{page}", tmp_path / "c", retries=1)
    assert len(site.asked) == 2 and not list((tmp_path / "c").glob("*.*"))


@pytest.mark.parametrize("page", ["trickles", "headers_trickle", "hangs", "down"])
def test_the_total_holds(site: Site, tmp_path: Path, page: str) -> None:
    began = time.monotonic()
    with pytest.raises(DownloadError):
        fetch(f"{site.url}/{page}", tmp_path / "c", total_s=.4, retries=10_000, backoff_s=.01)
    assert time.monotonic() - began < 4 # the server would go on for 5 s or for ever


def test_waits_no_longer_than_the_total_for_retry_after(site: Site, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DownloadError, match="429"):
        fetch(f"{site.url}/later", tmp_path / "c")
    assert time.monotonic() - began < 4 and len(site.asked) == 1


def test_size(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="more than the 1,000 allowed"):
        fetch(f"{site.url}/song", tmp_path / "c", max_bytes=1000)
    with pytest.raises(DownloadError, match="has more than the 1,000,000 bytes allowed"):
        fetch(f"{site.url}/endless", tmp_path / "c", max_bytes=1_000_000)
    assert len(site.asked) == 2 and left(tmp_path / "c") == []
    assert fetch(f"{site.url}/song", tmp_path / "c", max_bytes=len(site.song)).stat().st_size == len(site.song)


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "ftp://h/a", "a", "", "http://", "http://h:x/", "http://h:0/", "http://[::1", "data:,x",
])
def test_other_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="is not"):
        fetch(url, tmp_path / "c")


def test_credentials(site: Site, tmp_path: Path) -> None:
    """They reach their host, no other, and no message."""
    address = site.url.replace("http://", "http://me:s%40cret@")
    fetch(f"{address}/hop", tmp_path / "c")
    assert [a for _, _, a in site.asked] == ["Basic bWU6c0BjcmV0", None]
    for page in ("gone?key=s%40cret", "tofile?key=s%40cret", "hangs?key=s%40cret"):
        with pytest.raises(DownloadError) as e:
            fetch(f"{address}/{page}", tmp_path / "c", retries=0)
        assert "cret" not in str(e.value) + e.value.url + e.value.reason and e.value.__suppress_context__
    assert "cret" not in "".join(str(p) for p in (tmp_path / "c").rglob("*"))


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="ConnectionRefused"):
            fetch(f"http://127.0.0.1:{s.getsockname()[1]}/a", tmp_path / "c", retries=1)
    assert left(tmp_path / "c") == []


def test_through_a_proxy(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", site.url)
    assert fetch("http://songs.invalid/song.flac", tmp_path / "c").read_bytes() == site.song
    assert site.asked[0][0] == "http://songs.invalid/song.flac"


def _fetch_into(queue: multiprocessing.Queue, url: str, cache: Path) -> None:
    queue.put(fetch(url, cache, total_s=20).read_bytes())


def test_two_processes(site: Site, tmp_path: Path) -> None:
    """Four processes and four threads want one song whose server stops half way: one download, eight right answers."""
    got: list[bytes] = []
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_fetch_into, args=(queue, f"{site.url}/half", tmp_path / "c")) for _ in range(4)]
    threads = [threading.Thread(target=lambda: got.append(fetch(f"{site.url}/half", tmp_path / "c", total_s=20).read_bytes()))
               for _ in range(4)]
    for w in [*workers, *threads]:
        w.start()
    got += [queue.get(timeout=25) for _ in workers]
    for w in [*workers, *threads]:
        w.join()
    assert got == [site.song] * 8
    assert len(site.asked) == 2 and left(tmp_path / "c") == []


def test_wrong_limits(tmp_path: Path) -> None:
    for bad in ({"retries": -1}, {"max_bytes": 0}, {"timeout_s": 0}, {"total_s": 0}):
        with pytest.raises(ValueError, match="positive"):
            fetch("http://127.0.0.1/a", tmp_path, **bad)
