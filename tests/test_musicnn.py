"""MusiCNN: the reader of TensorFlow checkpoints on files made here, golden values of the authors' graph, tags of real recordings.

`musicnn_golden.json` was made once with tensorflow-cpu 2.21.0, tf_keras 2.21.0, librosa 0.11.0 and the unpacked wheel musicnn 0.1.0: with
TF_USE_LEGACY_KERAS=1, `musicnn.extractor.batch_data` was replaced by

    y = librosa.load(f, sr=16_000)[0]
    mel = librosa.feature.melspectrogram(y=y, sr=16_000, hop_length=256, n_fft=512, n_mels=96, pad_mode="reflect").T
    rep = np.log10(10000 * mel + 1).astype(np.float32)           # theirs is float16, which overflows under numpy 2
    return np.stack([rep[i:i + 187] for i in range(1, len(rep) - 186, 188)]), rep

and `extractor.extractor(f, model=…)` was called on `signal()` in a 32-bit float WAV file, with `configuration.BATCH_SIZE = 32`: with
theirs, 1, it repeats the first patch's penultimate layer for all patches.
"""
import json
import os
import shutil
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sunorecsys.embeddings import musicnn as m
from sunorecsys.embeddings.encoder import EncoderError, check_encoder

REAL = Path(os.environ.get("SUNORECSYS_REAL_DATA", Path(__file__).parents[2] / "shared/data")) / "audio"
GOLDEN = json.loads((Path(__file__).parent / "musicnn_golden.json").read_text())
needs_weights = pytest.mark.skipif(find_spec("musicnn") is None, reason="the weights are not installed (make extras)")

# The reader, on checkpoints written here

def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])

def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value

def masked(data: bytes) -> int:
    crc = m.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    "A block of the table with one restart point, and its trailer."
    out, before = b"", b""
    for key, value in entries:
        shared = len(os.path.commonprefix([before, key]))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    out += struct.pack("<II", 0, 1)
    return out + b"\0" + struct.pack("<I", masked(out + b"\0"))

def write_checkpoint(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    data, entries = b"", [(b"", field(1, 1))]
    kinds = {np.dtype(v): k for k, v in m.DTYPES.items()}
    for name, a in sorted(arrays.items()):
        piece = a.tobytes()
        shape = b"".join(field(2, field(1, n)) for n in a.shape)
        crc = varint(6 << 3 | 5) + struct.pack("<I", masked(piece))
        entries.append((name.encode(), field(1, kinds[a.dtype]) + field(2, shape) + field(4, len(data)) + field(5, len(piece)) + crc))
        data += piece
    body = block(entries)
    index = block([(b"zz", varint(0) + varint(len(body) - 5))])
    footer = varint(0) + varint(0) + varint(len(body)) + varint(len(index) - 5)
    (folder / ".index").write_bytes(body + index + footer.ljust(40, b"\0") + m.MAGIC)
    (folder / ".data-00000-of-00001").write_bytes(data)
    return folder

ARRAYS = {
    "dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "dense/bias": np.ones(300, np.float32),
    "dense/kernel/Adam": np.zeros(3, np.float32), "step": np.array(7, np.int64), "beta1_power": np.array(.9, np.float32)}

def test_a_checkpoint_is_read(tmp_path):
    got = m.read_checkpoint(write_checkpoint(tmp_path / "c", ARRAYS))
    assert set(got) == {"dense/kernel", "dense/bias", "step"}
    for k, v in got.items():
        assert v.dtype == ARRAYS[k].dtype and np.array_equal(v, ARRAYS[k])

def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(bytes(raw))

@pytest.mark.parametrize(("spoil", "says"), [
    (lambda f: flip(f / ".index", 30), "a block of the index is damaged"),
    (lambda f: flip(f / ".index", -1), "no index of a TensorFlow checkpoint"),
    (lambda f: (f / ".index").write_bytes(b""), "no index of a TensorFlow checkpoint"),
    (lambda f: (f / ".index").write_bytes(bytes(60) + m.MAGIC), "damaged"),
    (lambda f: (f / ".index").write_bytes(b"\xff" * 40 + m.MAGIC), "index"),
    (lambda f: flip(f / ".data-00000-of-00001", 1210), "the bytes of dense/kernel are damaged"),
    (lambda f: (f / ".data-00000-of-00001").write_bytes(b"abc"), "are damaged ("),
])
def test_a_damaged_checkpoint_is_refused(tmp_path, spoil, says):
    folder = write_checkpoint(tmp_path / "c", ARRAYS)
    spoil(folder)
    with pytest.raises(EncoderError) as e:
        m.read_checkpoint(folder)
    assert says in str(e.value) and str(folder) in str(e.value)

def test_a_type_that_is_not_read_is_named(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "c", ARRAYS)
    monkeypatch.delitem(m.DTYPES, 9)
    with pytest.raises(EncoderError, match="step has TensorFlow's type number 9"):
        m.read_checkpoint(folder)

def test_crc32c_of_any_length():
    slow = []
    for n in (0, 1, 3, 1020, 1021, 5000):
        data, c = np.random.default_rng(n).bytes(n), 0xFFFFFFFF
        for byte in data:
            c = int(m._crc_table()[(c ^ byte) & 255]) ^ c >> 8
        slow.append(c ^ 0xFFFFFFFF == m.crc32c(data))
    assert all(slow)

# Where the weights are

def test_absent_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(m, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="make extras"):
        m.musicnn()
    with pytest.raises(EncoderError, match="has no folder MSD_musicnn"):
        m.musicnn(folder=tmp_path)

def test_other_weights_are_refused(tmp_path):
    write_checkpoint(tmp_path / "MSD_musicnn", ARRAYS)
    with pytest.raises(EncoderError, match="not the file that musicnn 0.1.0 carries"):
        m.musicnn(folder=tmp_path)
    shutil.rmtree(tmp_path / "MSD_musicnn")
    (tmp_path / "MSD_musicnn").mkdir()
    with pytest.raises(EncoderError, match="no such file"):
        m.musicnn(folder=tmp_path)

# With the weights

@pytest.fixture(scope="module")
def models() -> dict[str, m.MusicnnEncoder]:
    return {w: m.musicnn(weights=w) for w in m.SHA256}

def signal(n: int = 3 * 48_128) -> np.ndarray: # float32, 16 kHz
    "A beat, a swelling chord and hats: what the golden values were made on."
    t = np.arange(n) / 16_000
    beat = np.exp(-6 * (t % .5)) * np.sin(2 * np.pi * 60 * (t % .5))
    chord = sum(np.sin(2 * np.pi * f * t) / (k + 1) for k, f in enumerate((220, 277.18, 329.63, 440, 880, 1760)))
    hat = np.sin(9e4 * np.sin(7919.0 * t)) * np.exp(-40 * (t % .25))
    return (.4 * beat + .1 * chord * (1 + np.sin(np.pi * t / 3)) / 2 + .15 * hat).astype(np.float32)

@needs_weights
@pytest.mark.parametrize("weights", list(m.SHA256))
def test_golden_values_of_the_authors_graph(models, weights):
    golden, model = GOLDEN[weights], models[weights]
    embedding, tags = model.run(signal().reshape(3, m.WINDOW))
    assert np.abs(embedding - golden["penultimate"]).max() < 2e-5
    assert np.abs(tags - golden["taggram"]).max() < 2e-6
    assert m.TAGS[weights] == golden["labels"]
    song = model.tags([signal()])
    assert list(song) == golden["labels"] and np.abs(song.iloc[0] - np.mean(golden["taggram"], 0)).max() < 2e-6
    assert np.abs(song.iloc[0] - golden["their_cut_mean_tags"]).max() < .03 # patches of theirs start a few milliseconds earlier

@needs_weights
def test_the_contract(models):
    model = models["MSD_musicnn"]
    check_encoder(model)
    assert (model.name, model.dim, model.sampling_rate, model.license) == ("musicnn", 200, 16_000, "ISC")
    assert len({e.fingerprint for e in models.values()}) == 2
    assert not {"musicnn", "tensorflow"} & set(sys.modules)
    short = model.tags([signal(1000), signal(50_000)])
    assert short.shape == (2, 50) and np.allclose(short.iloc[1], model.tags([signal(50_000)]).iloc[0], atol=1e-5)
    assert model.tags([]).shape == (0, 50)
    for bad in (np.zeros(0, np.float32), np.full(9000, np.nan, np.float32)):
        for encode in (model.tags, model.encode_audio):
            with pytest.raises(EncoderError, match="clip 0"):
                encode([bad])

@needs_weights
def test_a_flipped_bit_is_found(tmp_path):
    source = m.weights_folder("MSD_musicnn")
    target = Path(shutil.copytree(source, tmp_path / "MSD_musicnn"))
    flip(target / ".data-00000-of-00001", 1_000_000)
    with pytest.raises(EncoderError, match="not the file"):
        m.musicnn(folder=tmp_path)

# What a person would accept: all of these among the five most likely tags. MSD has no tag "classical", MTT none for trumpet or jazz.
ACCEPTED = {
    "Karissa_Hobbs_-_Lets_Go_Fishin": ("MSD_musicnn", {"female vocalists", "folk"}),
    "Kevin_MacLeod_-_P_I_Tchaikovsky_Dance_of_the_Sugar_Plum_Fairy": ("MTT_musicnn", {"classical", "strings"}),
    "Kevin_MacLeod_-_Vibe_Ace": ("MSD_musicnn", {"jazz", "instrumental"}),
    "hungarian_dance_5": ("MTT_musicnn", {"classical", "violin", "strings"}),
    "sorohanro_-_solo-trumpet-06": ("MSD_musicnn", {"jazz", "blues"}),
}

@needs_weights
@pytest.mark.skipif(not REAL.is_dir(), reason="the recordings are not there")
def test_tags_of_real_recordings(models):
    from sunorecsys.embeddings.audio import read_audio
    for name, (weights, accepted) in ACCEPTED.items():
        clip = read_audio(REAL / f"{name}.ogg", 16_000, max_seconds=30)
        tags = models[weights].tags([clip.samples]).iloc[0].nlargest(5)
        assert accepted <= set(tags.index), f"{name}: {tags.round(2).to_dict()}"
