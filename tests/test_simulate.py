"""The simulator at its edges: tiny worlds, other processes, seeds that must not collide, truth that must stay small."""
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sunorecsys.data.simulate import simulate
from sunorecsys.data.taste import REGIMES
from sunorecsys.schema import TABLES, validate

MICRO = dict(n_songs=60, n_users=40, n_weeks=4)

def digest(regime: str, seed: int) -> str:
    world = simulate(replace(REGIMES[regime], **MICRO), seed)
    frames = [world.interactions, world.impressions, world.song_stats, world.users, world.songs.drop(columns="tags")]
    return hashlib.sha256(b"".join(pd.util.hash_pandas_object(f).to_numpy().tobytes() for f in frames)).hexdigest()

@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", [dict(n_songs=1, n_users=1, n_weeks=2), dict(n_songs=5, n_users=2, n_weeks=1), MICRO])
def test_every_size_gives_valid_tables(regime: str, size: dict) -> None:
    for seed in range(2):
        world = simulate(replace(REGIMES[regime], **size), seed)
        for table in TABLES:
            validate(getattr(world, table), table)
        created = world.songs.set_index("song_id")["created_at"]
        assert (world.interactions["timestamp"] >= created.loc[world.interactions["song_id"]].to_numpy()).all()

def test_another_process_simulates_the_same() -> None:
    code, here = "from test_simulate import digest; print(digest('easy', 3))", Path(__file__).parent
    other = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest("easy", 3) != digest("easy", 4)

def test_two_worlds_fit_into_one_log() -> None:
    worlds = [simulate(replace(REGIMES[r], **MICRO), s) for r, s in (("easy", 0), ("easy", 1), ("latent-heavy", 0))]
    assert pd.concat([w.interactions["event_id"] for w in worlds]).is_unique

def test_truth_is_factors() -> None:
    config = replace(REGIMES["easy"], n_songs=3000, n_users=2000)
    world = simulate(config, 0)
    assert max(v.size for v in world.truth.values()) < config.n_users * config.n_songs / 10

def test_propensities_are_the_frequencies_of_the_log() -> None:
    """Over all impressions of a position, the mean of 1 / propensity is the number of songs that could have stood there."""
    world = simulate(replace(REGIMES["easy"], n_users=3000, n_songs=100, n_weeks=1, plays_per_user_week=1.0), 0)
    p = world.impressions["propensity"]
    could = (world.songs["created_at"] < pd.Timestamp(world.config.start, tz="UTC")).sum()
    assert np.mean(1 / p) == pytest.approx(could, rel=0.05)
    by_song = world.impressions.groupby("song_id")
    shown, expected = by_song.size(), world.impressions["list_id"].nunique() * world.config.list_length * by_song["propensity"].mean()
    assert (np.abs(shown - expected) < 6 * np.sqrt(expected)).all()
