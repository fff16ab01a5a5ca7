"""The weekly run as an operator and a user of the package meet it."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from sunorecsys.cli import Format, app, render
from sunorecsys.evaluation.report import quality_by_week
from sunorecsys.notebooks import NotebookError, execute, notebooks_folder, read_notebook, write_notebook
from sunorecsys.recommenders.two_tower import TwoTower
from sunorecsys.schema import Col
from sunorecsys.stages import STAGES
from sunorecsys.testing import fingerprint
from sunorecsys.weekly import run_week
from sunorecsys.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("SUNORECSYS_REAL_DATA", ROOT.parent / "shared" / "data"))
CLI = [sys.executable, "-c", "from sunorecsys.cli import main; main()"]


def sh(*args: object, **kw: object) -> subprocess.CompletedProcess:
    return subprocess.run([*CLI, *map(str, args)], capture_output=True, text=True, check=False, **kw)


def test_a_week_its_backtest_and_an_older_week_made_again(published: Path) -> None:
    done = run_week(published, week="2026-W12", level="ERROR")
    lists = pd.read_parquet(done.playlists)
    known = pd.read_parquet(done.run.folder / "frozen" / "interactions.parquet")
    registered = set(pd.read_parquet(published / "users.parquet")["user_id"])
    assert set(lists["user_id"]) == set(known["user_id"]) | registered, "not every listener has a playlist"
    silent = lists[~lists["user_id"].isin(known["user_id"])]
    assert set(silent["reason_kind"]) <= {"cold_start"}, "somebody who never played got something else than popular songs"
    seen = known[["user_id", "song_id"]].drop_duplicates()
    assert not len(lists.merge(seen, on=["user_id", "song_id"])), "something seen was recommended"
    assert {"list_id", "week", "variant", "policy", "propensity", "channel", "reason_kind", "reason_id", "score_item_cf"} <= set(lists)
    texts = {r.name[:8]: json.loads((r / "embeddings" / "embeddings.json").read_text())["modalities"]["text"]
             for r in (published / "runs").iterdir()}
    new = texts["2026-W12"]["with_vector"] - texts["2026-W11"]["with_vector"]
    assert texts["2026-W11"]["embedded_now"] == texts["2026-W11"]["with_vector"] and texts["2026-W12"]["embedded_now"] == new > 0
    rows = quality_by_week(published)
    mine = rows[rows["model"] == "published"]
    assert mine["scored"].tolist() == ["2026-W11"] and mine["part"].tolist() == ["backtest"] and mine["value"].between(0, 1).all()
    metrics = json.loads((done.run.folder / "metrics.json").read_text())
    models = {r["model"] for r in metrics["rows"] if r["part"] == "validation"}
    assert {"random", "popularity", "item_cf", "user_based", "hybrid", "informed ceiling", "oracle"} <= models
    assert metrics["sources"] == {"sample": True} and "music_flamingo" in metrics["absent"]
    report = done.report.read_text()
    assert "Simulated listening" in report and report.count("data:image/png") >= 2
    old, ws = run_week(published, week="2026-W11", level="ERROR", force=True).run.folder, Workspace(published)
    assert ws.published() == done.run.folder and ws.published("2026-W11") == old, "current moved back"


def test_plain_papermill_runs_a_stage_with_parameters(published: Path, tmp_path: Path) -> None:
    """As the README says: any stage notebook, lessons and all, on a workspace that it is told."""
    nb = read_notebook(notebooks_folder() / "17_data.splits.ipynb")
    nb["cells"] = [c for c in nb["cells"] if "nbdev_export" not in c["source"]]  # else modules are rewritten while other tests hash them
    write_notebook(tmp_path / "17_data.splits.ipynb", nb)
    parameters = {"workspace": str(published), "week": "2026-W12"}
    done = execute(tmp_path / "17_data.splits.ipynb", tmp_path / "out.ipynb", parameters, production=False)
    assert (published / "runs" / "2026-W12-001" / "stages" / "splits.json").exists()
    assert any("train" in str(c.get("outputs", "")) for c in done["cells"])


def test_unknown_parameter_and_untagged_notebook_are_refused(tmp_path: Path) -> None:
    source = notebooks_folder() / "41_recommenders.item_cf.ipynb"
    with pytest.raises(NotebookError, match="no parameter wek"):
        execute(source, tmp_path / "out.ipynb", {"wek": "2026-W12"})
    nb = json.loads(source.read_text())
    for c in nb["cells"]:
        c["metadata"].pop("tags", None)
    (tmp_path / "bare.ipynb").write_text(json.dumps(nb))
    with pytest.raises(NotebookError, match="0 cells are tagged 'parameters'"):
        execute(tmp_path / "bare.ipynb", tmp_path / "out.ipynb", {"week": "2026-W12"})


@pytest.mark.parametrize(("args", "says"), [
    (["weekly", "-w", "{none}"], "sunorecsys sample"),
    (["weekly", "-w", "{w}", "--week", "2026-W99"], "no such week"),
    (["weekly", "-w", "{w}", "--week", "2026-W11", "--as-of", "2026-03-09"], "not both"),
    (["weekly", "-w", "{w}", "--set", "item_cf.top_k=5"], "did you mean 'item_cf.top_k_per_seed'"),
    (["weekly", "-w", "{w}", "--week", "2020-W01"], "nothing was played before 2019-12-30"),
    (["recommend", "-w", "{w}"], "--user or --songs"),
    (["recommend", "-w", "{w}", "--songs", "nope"], "none of the seed songs"),
    (["recommend", "-w", "{w}", "--user", "u000001", "--week", "2020-W01"], "2020-W01 is not published"),
    (["ingest", "nope", "{none}", "-w", "{w}"], "no source 'nope'"),
])
def test_errors_are_one_sentence(published_template: Path, tmp_path: Path, args: list[str], says: str) -> None:
    done = sh(*[a.format(w=published_template, none=tmp_path / "nothing") for a in args])
    assert done.returncode in (1, 2) and says in re.sub(r"\s+", " ", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_formats_and_strangers(published_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    m3u = sh("recommend", "-w", published_template, "--user", "u000001", "-n", 3, "--format", "m3u")
    assert m3u.stdout == "#EXTM3U\n" and "3 of 3 songs have no audio" in m3u.stderr
    rows = json.loads(sh("recommend", "-w", published_template, "--user", "u000001", "-n", 12, "--format", "json").stdout)
    assert [r["rank"] for r in rows] == list(range(1, 13))  # more than the ten that were published
    stranger = sh("recommend", "-w", published_template, "--user", "nobody", "-n", 3, "--explain")
    assert "nobody called 'nobody'" in stranger.stderr and "we do not know you" in stranger.stdout
    trace = sh("recommend", "-w", published_template, "--user", "u000001", "--trace", "--format", "json")
    assert "recall: union" in sh("recommend", "-w", published_template, "--songs", "s000001", "--trace").stderr
    for part in ("recall: union", "not part of this list", "quality threshold", "removed by it", "contributions to the score"):
        assert part in trace.stderr, part
    assert json.loads(trace.stdout)[0]["rank"] == 1, "the trace went into the JSON"


def test_m3u_lists_files_with_seconds_and_titles() -> None:
    songs = pd.DataFrame({Col.TITLE: ["One\nline", "Two", None], Col.DURATION: [61.4, None, 3.0], Col.AUDIO: ["1.flac", None, "3.flac"]},
                         index=pd.Index(["s1", "s2", "s3"], name=Col.SONG))
    said = render(pd.DataFrame({Col.SONG: ["s1", "s2", "s3"]}), songs, Format.m3u, False)
    assert said.splitlines() == ["#EXTM3U", "#EXTINF:61,One line", "1.flac", "#EXTINF:3,s3", "3.flac"]


def test_one_channel_is_trained_alone_and_goes_on(published: Path) -> None:
    def train(*settings: str) -> Result:
        return CliRunner().invoke(app, ["train", "two_tower", "-w", str(published), *(x for s in settings for x in ("--set", s))])
    first, more = train("two_tower.epochs=1"), train("two_tower.epochs=2", "two_tower.patience=9")
    assert "1 epochs; the best is 1" in first.output and "2 epochs, going on from epoch 1" in more.output, more.output
    folder = published / "training" / "two_tower"
    assert {"checkpoint", "tensorboard", "model", "curve.png"} <= {p.name for p in folder.iterdir()}
    assert "popularity" in more.output and len(TwoTower.load(folder / "model").recommend("u000001", n=5)) == 5
    assert "holds another training" in str(train("two_tower.dim=4").exception)


def test_help_of_every_command() -> None:
    listed = sh("--help").stdout
    for command in ("sample", "ingest", "weekly", "replay", "recommend", "status", "train", "tune", "bench"):
        assert command in listed and "--help" in sh(command, "--help").stdout


def test_same_seed_same_playlists(micro: Path, published_template: Path) -> None:
    a, b = Workspace(published_template).published("2026-W11"), run_week(micro, week="2026-W11", level="ERROR").run.folder
    assert a != b and fingerprint(pd.read_parquet(a / "playlists.parquet")) == fingerprint(pd.read_parquet(b / "playlists.parquet"))


@pytest.mark.skipif(not (REAL / "lastfm-2k").exists(), reason="real data are not here")
def test_every_listener_of_lastfm_gets_thirty_artists(tmp_path: Path) -> None:
    w = tmp_path / "w"
    assert sh("ingest", "lastfm-2k", REAL / "lastfm-2k", "-w", w).returncode == 0
    settings = ("user_based.n_iterations=4", "ease.max_songs=5000", "ease.rank=32", "ease.epochs=3", "two_tower.examples=5000",
                "two_tower.epochs=1", "interests.restarts=1", "interests.rounds=5", "hybrid.n_recall=60")
    quick = [x for s in settings for x in ("--set", s)]
    assert sh("weekly", "-w", w, "--log-level", "ERROR", *quick).returncode == 0
    run = Workspace(w).published()
    lists = pd.read_parquet(run / "playlists.parquet")
    assert lists["user_id"].nunique() == 1892 and (lists.groupby("user_id").size() == 30).all()
    titles = pd.read_parquet(run / "frozen" / "songs.parquet").set_index("song_id")["title"]
    assert titles.reindex(lists["song_id"]).notna().all()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["split"]["protocol"] == "per_listener" and not any(metrics["sources"].values())
    assert "ease" in metrics["channels"] and "order of the plays" in metrics["absent"]["transitions"]
    ndcg = {r["model"]: r["value"] for r in metrics["rows"] if r["metric"] == "NDCG" and r["k"] == 30 and r["part"] == "validation"}
    assert ndcg["after recall"] > max(ndcg[c] for c in metrics["channels"]), "the learnt blend is below its best channel"
    assert "plays without dates" in (run / "report.html").read_text()


@pytest.mark.skipif(not (REAL / "suno").exists(), reason="real data are not here")
def test_real_songs_with_simulated_listeners(tmp_path: Path) -> None:
    """Their audio lies at addresses; here nobody answers there, and the week is made all the same."""
    w, nowhere = tmp_path / "w", os.environ | {"https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    assert sh("ingest", "suno", REAL / "suno" / "songs.json", "-w", w, "--simulate-listeners", 100).returncode == 0
    settings = ("embeddings.encoder=mfcc", "two_tower.epochs=1", "interests.restarts=1", "interests.rounds=5", "hybrid.n_recall=60")
    quick = [x for s in settings for x in ("--set", s)]
    assert sh("weekly", "-w", w, "--log-level", "ERROR", *quick, env=nowhere).returncode == 0
    run = Workspace(w).published()
    lists = pd.read_parquet(run / "playlists.parquet")
    assert (lists.groupby("user_id").size() == 30).all() and lists["user_id"].nunique() > 90
    failed = pd.read_parquet(run / "embeddings" / "failed.parquet")
    assert len(failed) == 234 and failed["reason"].str.contains("songs in a row and is not asked again").sum() > 200
    assert "Simulated listening" in (run / "report.html").read_text()


def test_an_installed_wheel_runs_a_week_outside_the_clone(micro: Path, tmp_path: Path) -> None:
    """The wheel is built, unpacked somewhere else and used from an unrelated folder: notebooks travel with it."""
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                            "-w", str(tmp_path / "dist"), str(ROOT)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    site = tmp_path / "site"
    zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))).extractall(site)
    env = os.environ | {"PYTHONPATH": str(site)}
    where = subprocess.run([sys.executable, "-c", "import sunorecsys.notebooks as n; print(n.notebooks_folder())"],
                           capture_output=True, text=True, cwd=tmp_path, env=env, check=True).stdout.strip()
    assert where == str(site / "sunorecsys" / "_nbs")
    done = sh("weekly", "-w", micro, "--log-level", "ERROR", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert Workspace(micro).published() and all((Workspace(micro).published() / "stages" / f"{s}.json").exists() for s in STAGES)
