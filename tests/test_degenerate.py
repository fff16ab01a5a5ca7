"""Logs that have next to nothing in them: every week is published with a plain statement, or one sentence says what is missing.

The stages run in this process, by the cells that a weekly run executes; one case goes through papermill as a whole.
"""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sunorecsys.recommenders.hybrid import CHANNELS, HybridRecommender, served, served_in_words
from sunorecsys.schema import Col, validate
from sunorecsys.stages import STAGES, Run, open_run, stage_cells
from sunorecsys.weekly import run_week
from sunorecsys.workspace import Workspace, write_table

WEEK = "2026-W12"
Tables = tuple[pd.DataFrame, pd.DataFrame]


def whole_catalogue(log: pd.DataFrame, songs: pd.DataFrame, n_users: int = 6) -> Tables:
    """Everybody has played every song, and every song is old."""
    pairs = pd.MultiIndex.from_product([sorted(log[Col.USER].unique())[:n_users], songs[Col.SONG]], names=[Col.USER, Col.SONG])
    plays = pairs.to_frame(index=False)
    plays[Col.TIME] = log[Col.TIME].max() - pd.to_timedelta(np.arange(len(plays)) * 97 % (30 * 24 * 60), "min")
    return validate(plays, "interactions")[0], songs.assign(**{Col.CREATED: pd.Timestamp("2020-01-01", tz="UTC").as_unit("us")})


def one_song(log: pd.DataFrame, songs: pd.DataFrame) -> Tables:
    song = log[Col.SONG].mode()[0]
    return log[log[Col.SONG] == song], songs[songs[Col.SONG] == song]


def last_days(log: pd.DataFrame, songs: pd.DataFrame) -> Tables:
    """Everything, songs included, began three days ago: there is nothing to fit the validation models on."""
    start = log[Col.TIME].max().floor("D") - pd.Timedelta(days=2)
    return log[log[Col.TIME] > start], songs.assign(**{Col.CREATED: start})


def undated(log: pd.DataFrame, songs: pd.DataFrame) -> Tables:
    return log.iloc[:3].assign(**{Col.TIME: pd.Series(pd.NaT, log.index[:3], dtype=log[Col.TIME].dtype)}), songs


# name: what is left of log and songs, whether the registered listeners stay, and words that notebook 72 must print
CASES: dict[str, tuple[Callable[[pd.DataFrame, pd.DataFrame], Tables], bool, tuple[str, ...]]] = {
    "one listener": (lambda x, s: (x[x[Col.USER] == x[Col.USER].mode()[0]], s), False, ("1 of 1 listeners got a list",)),
    "only skips": (lambda x, s: (x.assign(**{Col.TYPE: "skip"}), s), True, ("40 of 40", "40 of them with popular songs only")),
    "weights of zero": (lambda x, s: (x.assign(**{Col.WEIGHT: 0.0}), s), True, ("40 of 40", "40 of them with popular songs only")),
    "whole catalogue played": (whole_catalogue, True, ("34 of 40", "6 got none, having played every song there is")),
    "one song": (one_song, True, ("of them shorter than wished", "got none, having played", "Nothing to score")),
    "a week without plays": (lambda x, s: (x[x[Col.TIME] < x[Col.TIME].max() - pd.Timedelta(days=20)], s), True, ("Nothing to score",)),
    "one event": (lambda x, s: (x.iloc[-1:], s), True, ("40 of 40", "39 of them with popular", "Nothing to score")),
    "three undated events": (undated, True, ("40 of 40", "Nothing to score")),
    "three days old": (last_days, False, ("listeners got a list", "Nothing to score")),
}


@pytest.fixture
def workspace(micro: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make the micro workspace one of the cases."""
    matplotlib.use("Agg")
    monkeypatch.setattr(Figure, "tight_layout", lambda self: None)  # half of the time; the whole run does it

    def change(case: Callable[[pd.DataFrame, pd.DataFrame], Tables], registered: bool = True) -> Path:
        ws = Workspace(micro)
        parts = sorted(ws.log.glob("*.parquet"))
        log, songs = case(pd.concat(map(pd.read_parquet, parts), ignore_index=True), pd.read_parquet(ws.songs))
        for p in parts:
            p.unlink()
        shutil.rmtree(ws.simulation)
        write_table(ws.log / "left.parquet", log)
        write_table(ws.songs, songs)
        if not registered:
            ws.users.unlink()
        return micro

    return change


def run_cells(root: Path, stage: str) -> str:
    """The stage's cells as a weekly run executes them, but in this process; what they printed."""
    space, said = {"__name__": "__main__"}, io.StringIO()
    for i, source in enumerate(stage_cells(stage)):
        with contextlib.redirect_stdout(said):
            exec(compile(source, f"{stage}, cell {i}", "exec"), space)
        if i == 0:  # the parameters
            space |= {"workspace": str(root), "week": WEEK}
        plt.close("all")
    return said.getvalue()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_every_stage_ends_well(name: str, workspace: Callable[..., Path]) -> None:
    case, registered, words = CASES[name]
    root = workspace(case, registered)
    said = {stage: run_cells(root, stage) for stage in STAGES}
    this: Run = open_run(root, week=WEEK)
    counts = served(this.folder)
    assert served_in_words(counts) in said["hybrid"]
    for w in words:
        assert w in said["hybrid"], said["hybrid"]
    lists = pd.read_parquet(this.folder / "playlists.parquet")
    assert lists[Col.USER].nunique() == counts["with_list"] == counts["listeners"] - counts["no_song_left"]
    model = HybridRecommender.load(this.folder / "models/hybrid/final")
    free = {u: len(model.x.items) - n for u, n in zip(model.x.users.ids, np.diff(model.x.seen.indptr), strict=True)}
    length = lists.groupby(Col.USER).size().to_dict()
    n = this.config.hybrid.n
    assert {u: min(k, n) for u, k in free.items()} == {u: length.get(u, 0) for u in free}  # never shorter than it must be
    if not model.x.liked.nnz:
        assert set(lists[Col.REASON_KIND]) <= {"cold_start"}


@pytest.mark.parametrize(("case", "says"), [
    (lambda x, s: (x.iloc[:0], s), "is empty: nobody has played anything; bring plays with 'sunorecsys ingest'"),
    (lambda x, s: (x.assign(**{Col.SONG: "x" + x[Col.SONG]}), s), "of a song that exists by then"),
    (lambda x, s: (x, s.iloc[:0]), "of a song that exists by then"),
    (lambda x, s: (x, s.assign(**{Col.CREATED: x[Col.TIME].max() + pd.Timedelta(days=9)})), "of a song that exists by then"),
])
def test_nothing_to_learn_from_is_one_sentence(case: Callable[[pd.DataFrame, pd.DataFrame], Tables], says: str,
                                               workspace: Callable[..., Path]) -> None:
    with pytest.raises(ValueError) as e:
        run_cells(workspace(case), "splits")
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_whole_run_where_everybody_has_played_everything(workspace: Callable[..., Path]) -> None:
    root = workspace(whole_catalogue, registered=False)
    done = run_week(root, week=WEEK, level="ERROR")
    assert Workspace(root).published() == done.run.folder and not len(pd.read_parquet(done.playlists))
    assert "6 got none, having played every song there is" in (done.run.folder / "notebooks/72_recommenders.hybrid.ipynb").read_text()
    assert served(done.run.folder) == {"listeners": 6, "with_list": 0, "short": 0, "cold_start": 0, "no_song_left": 6}


def test_channels_of_a_run_lie_on_the_disk_once_and_a_copied_hybrid_loads(micro: Path, tmp_path: Path) -> None:
    for stage in STAGES:
        if stage != "report":
            run_cells(micro, stage)
    models = open_run(micro, week=WEEK).folder / "models"
    for name in CHANNELS:
        for p in (models / name / "final").iterdir():
            assert p.samefile(models / "hybrid/final/channels" / name / p.name)
    alone = shutil.copytree(models / "hybrid/final", tmp_path / "alone")
    want = HybridRecommender.load(models / "hybrid/final").recommend("u000003")
    shutil.rmtree(models)
    pd.testing.assert_frame_equal(HybridRecommender.load(alone).recommend("u000003"), want)
