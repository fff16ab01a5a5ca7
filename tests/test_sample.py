"""The sample workspace: made once, resumed, refused in somebody else's folder, and the same from the same seed."""
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from sunorecsys.data.sample import MICRO, heldback_week, make_sample, missing_clips, song_attributes
from sunorecsys.data.simulate import load_truth
from sunorecsys.data.synthesis import synthesise
from sunorecsys.data.taste import REGIMES
from sunorecsys.schema import TABLES, Col, validate
from sunorecsys.workspace import WEEK, Workspace, boundary, file_hash, lock, write_json

SOUNDING = MICRO | {"audio": True}

def hashes(workspace: Workspace) -> dict[str, str]:
    files = (p for p in workspace.root.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(workspace.root).as_posix(): file_hash(p) for p in files}

@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Workspace:
    return make_sample(tmp_path_factory.mktemp("sample") / "workspace", **SOUNDING, progress=False)

@pytest.fixture
def copy(sample, tmp_path) -> Workspace:
    shutil.copytree(sample.root, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace")

def test_micro_is_fast(tmp_path):
    began = time.process_time() # of this process: other work on the machine does not count
    make_sample(tmp_path / "w", **MICRO, progress=False)
    assert time.process_time() - began < 2

@pytest.mark.parametrize("regime", REGIMES)
def test_tables_are_valid_and_end_before_the_heldback_week(tmp_path, regime):
    ws = make_sample(tmp_path / "w", **MICRO, regime=regime, progress=False)
    tables = {"songs": pd.read_parquet(ws.songs), "song_stats": pd.read_parquet(ws.song_stats), "users": pd.read_parquet(ws.users),
              "interactions": pd.read_parquet(ws.log / "sample.parquet"), "impressions": pd.read_parquet(ws.impressions / "sample.parquet")}
    assert set(tables) == set(TABLES)
    for name, frame in tables.items():
        assert len(validate(frame, name, source=name)[0]) == len(frame) > 0
    held = heldback_week(ws)
    as_of = boundary(held[Col.TIME].min())
    assert held[Col.TIME].between(as_of, as_of + WEEK, inclusive="left").all()
    assert boundary(tables["interactions"][Col.TIME].max()) == as_of - WEEK
    assert tables["impressions"][Col.TIME].max() < as_of and tables["song_stats"][Col.OBSERVED].max() < as_of
    assert not set(held[Col.EVENT]) & set(tables["interactions"][Col.EVENT])
    made = tables["songs"].set_index(Col.SONG)[Col.CREATED]
    for name in ("interactions", "impressions"):
        assert (tables[name][Col.TIME] >= tables[name][Col.SONG].map(made)).all(), f"{name} of songs that do not exist yet"

def test_again_is_a_no_op(sample):
    before = {p: p.stat().st_mtime_ns for p in sample.root.rglob("*")}
    with lock(sample, "a weekly run"): # not even the lock is needed
        make_sample(sample.root, **SOUNDING, progress=False)
    before.pop(sample.root / ".lock")
    assert {p: p.stat().st_mtime_ns for p in sample.root.rglob("*") if p.name != ".lock"} == before

def test_another_seed_gives_another_platform(sample, tmp_path):
    other = make_sample(tmp_path / "w", **MICRO, seed=1, progress=False)
    assert file_hash(other.log) != file_hash(sample.log) and file_hash(other.songs) != file_hash(sample.songs)

@pytest.mark.parametrize("lost", [
    ["sources.json"], ["songs.parquet", "sources.json"], ["log", "sources.json"], ["audio"], ["audio/s000007.flac"]])
def test_resumes(sample, copy, lost):
    for name in lost:
        path = copy.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    make_sample(copy.root, **SOUNDING, progress=False)
    assert hashes(copy) == hashes(sample)

def _make(root: Path) -> None:
    make_sample(root, **SOUNDING, progress=False)

@pytest.mark.parametrize("after", ["simulation/simulation.json", "audio/s000010.flac"])
def test_survives_a_kill(sample, tmp_path, after):
    ws = Workspace(tmp_path / "w")
    child = multiprocessing.get_context("fork").Process(target=_make, args=(ws.root,))
    child.start()
    while child.is_alive() and not (ws.root / after).exists():
        time.sleep(.001)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    make_sample(ws.root, **SOUNDING, progress=False)
    made = {k: v for k, v in hashes(ws).items() if not Path(k).name.startswith(".")} # a killed write may leave its temporary file
    assert made == hashes(sample)

def test_two_at_once_make_the_same_bytes(sample, tmp_path):
    ws = Workspace(tmp_path / "w")
    children = [multiprocessing.get_context("fork").Process(target=_make, args=(ws.root,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert hashes(ws) == hashes(sample)

@pytest.mark.parametrize("change", [{"seed": 1}, {"regime": "latent-heavy"}, {"n_users": 41}, {"audio": False}])
def test_refuses_another_sample(copy, change):
    before = hashes(copy)
    with pytest.raises(FileExistsError, match="holds another sample .* instead of"):
        make_sample(copy.root, **SOUNDING | {"progress": False} | change)
    assert hashes(copy) == before

@pytest.mark.parametrize("name", ["songs.parquet", "history.db", "log/mine.parquet", "simulation/world.json", "notes/a.txt"])
def test_refuses_other_peoples_folders(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="the sample needs a folder of its own"):
        make_sample(tmp_path, **MICRO, progress=False)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path] and path.read_text() == "mine"

def test_keeps_settings_and_later_sources(tmp_path):
    (tmp_path / "config.yaml").write_text("live: true\n")
    ws = make_sample(tmp_path, **MICRO, progress=False)
    assert ws.config_file.read_text() == "live: true\n"
    (ws.log / "mine.parquet").write_bytes((ws.log / "sample.parquet").read_bytes())
    before = hashes(ws)
    make_sample(tmp_path, **MICRO, progress=False)
    assert hashes(ws) == before

@pytest.mark.parametrize("bad, message", [
    ({"regime": "hard"}, "no regime 'hard'; known: easy"), ({"n_songs": 10}, "50 songs"), ({"seed": -1}, "seed")])
def test_refuses_impossible_recipes(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        make_sample(tmp_path / "w", **MICRO | {"progress": False} | bad)
    assert not (tmp_path / "w").exists()

def test_a_damaged_record_is_named(copy):
    (copy.simulation / "simulation.json").write_text("{")
    with pytest.raises(ValueError, match="simulation.json is damaged"):
        make_sample(copy.root, **SOUNDING, progress=False)

def test_clips_sound_like_their_songs(sample):
    assert not missing_clips(sample, 60)
    songs, (_, truth) = pd.read_parquet(sample.songs), load_truth(sample.simulation)
    y, rate = soundfile.read(sample.root / songs[Col.AUDIO][7], dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(y, synthesise(song_attributes(truth, 7), seed=(0, 7)), atol=1 / 2**15)

def test_half_a_sample_with_other_data_is_refused(copy):
    write_json(copy.sources, {"lastfm-2k": {}})
    with pytest.raises(FileExistsError, match="half a sample and lastfm-2k"):
        make_sample(copy.root, **SOUNDING, progress=False)
