"""The weekly run under faults: killed at random moments, run twice at once, out of disk, fed with the future."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from sunorecsys import weekly
from sunorecsys.stages import STAGES, open_run
from sunorecsys.testing import fingerprint
from sunorecsys.weekly import StageFailed, needed, run_week
from sunorecsys.workspace import Locked, Workspace, lock, lock_holder, week_start

KILLS = int(os.environ.get("KILLS", "5"))
WEEK = "2026-W12"
CLI = [sys.executable, "-c", "from sunorecsys.cli import main; main()"]


def start(root: Path, *args: str) -> subprocess.Popen:
    """A weekly run as an operator starts it, in a process group of its own."""
    return subprocess.Popen([*CLI, "weekly", "-w", str(root), *args], start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def undisturbed(published_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """(fingerprint of the playlists of a run that nobody disturbs, seconds it took)."""
    root = Path(shutil.copytree(published_template, tmp_path_factory.mktemp("calm") / "w", symlinks=True))
    began = time.monotonic()
    done = run_week(root, week=WEEK, level="ERROR")
    return fingerprint(pd.read_parquet(done.playlists)), time.monotonic() - began


def test_killed_at_random_moments(published: Path, undisturbed: tuple[str, float]) -> None:
    """Published stays readable and identical; the rerun resumes and ends with the undisturbed playlists."""
    want, seconds = undisturbed
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    ws = Workspace(published)
    old = ws.published().resolve()
    before = fingerprint(old)
    resumed, killed = 0, 0
    while killed < KILLS:
        run = start(published, "--week", WEEK)
        # a share of the run from its start; a resumed run goes on from where it was, so kills reach the later stages too
        time.sleep(rng.uniform(.1, .6) * seconds)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            killed += 1
        out = run.communicate()[0]
        resumed += "done before, skipped" in out
        if ws.published(WEEK):  # it got through: check, and begin again with a new run
            assert fingerprint(pd.read_parquet(ws.published(WEEK) / "playlists.parquet")) == want
            (ws.weeks / WEEK).unlink()
            shutil.rmtree(ws.runs / f"{WEEK}-001")
            os.replace(ws.current, ws.root / "gone")
            os.symlink(f"runs/{old.name}", ws.current)
        else:
            assert ws.published() == old, "what is current changed although nothing was published"
        assert fingerprint(old) == before, "a published week was touched"
    done = run_week(published, week=WEEK, level="ERROR")
    assert fingerprint(pd.read_parquet(done.playlists)) == want
    assert ws.published() == done.run.folder and fingerprint(old) == before
    assert resumed or done.skipped, "no run resumed anything"
    assert len(list(ws.runs.glob(f"{WEEK}-*"))) == 1, "a killed run was not resumed but started anew"


def test_second_run_refuses_and_names_the_first(published: Path) -> None:
    run = start(published, "--week", WEEK)
    try:
        deadline = time.monotonic() + 30
        while lock_holder(Workspace(published)) is None and time.monotonic() < deadline:
            time.sleep(.05)
        with pytest.raises(Locked, match=f"process {run.pid}: weekly run {WEEK}"), lock(Workspace(published), "a second run"):
            pass
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def test_orphaned_kernel_keeps_the_lock(micro: Path) -> None:
    """A kernel lives in a session of its own: while it lives nobody else may begin, and when it dies the lock is free."""
    code = ("import os, sys; from sunorecsys.kernels import INHERITED, InheritingKernelManager; "
            "from sunorecsys.workspace import Workspace, lock; from sunorecsys.weekly import inherited; import asyncio\n"
            "async def go():\n"
            f"    with lock(Workspace({str(micro)!r}), 'a run that dies') as fd, inherited(fd):\n"
            "        km = InheritingKernelManager(); await km.start_kernel(); print(km.provisioner.pid, flush=True); os._exit(9)\n"
            "asyncio.run(go())")
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    kernel = int(run.stdout.readline())  # not to the end: the kernel holds the other end of the pipe too
    run.wait(timeout=60)
    with pytest.raises(Locked, match="a run that dies"), lock(Workspace(micro), "too early", wait_s=0):
        pass
    os.kill(kernel, signal.SIGKILL)
    with lock(Workspace(micro), "now", wait_s=10):
        pass


def test_disk_full_while_publishing(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = Workspace(published)
    old = ws.published()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("sunorecsys.workspace.os.symlink", full)
        with pytest.raises(OSError, match="No space left"):
            run_week(published, week=WEEK, level="ERROR")
    assert ws.published() == old and ws.published(WEEK) is None
    done = run_week(published, week=WEEK, level="ERROR")
    assert done.skipped == tuple(STAGES) and ws.published(WEEK) == done.run.folder


def test_disk_full_in_a_stage(micro: Path) -> None:
    """Files may not grow beyond 20 kB: a stage fails, says which and where, and nothing is published."""
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run([*CLI, "weekly", "-w", str(micro), "--week", WEEK],
                          capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode in (1, 2) and "File too large" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert Workspace(micro).published(WEEK) is None
    assert run_week(micro, week=WEEK, level="ERROR").run.week == WEEK


def test_a_failing_stage_is_named_and_resumed(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The week cells of user_based raise; splits and item_cf are kept."""
    real = weekly.execute

    def breaks(source: Path, target: Path, parameters: dict, **kw: object) -> object:
        if source.name.startswith("42"):
            parameters = parameters | {"run": "no-such-run"}
        return real(source, target, parameters, **kw)

    with monkeypatch.context() as m:
        m.setattr(weekly, "execute", breaks)
        with pytest.raises(StageFailed, match="stage user_based failed: FileNotFoundError: no run 'no-such-run'"):
            run_week(published, week=WEEK, level="ERROR")
    done = run_week(published, week=WEEK, level="ERROR")
    assert done.skipped[:3] == ("splits", "embeddings", "item_cf") and done.executed[0] == "user_based"


def test_the_future_changes_nothing(published_template: Path, micro: Path) -> None:
    """The whole week, run again with every event, counter and song from `as_of` on scrambled: the same playlists to the byte."""
    from sunorecsys.testing import perturb_future
    ws, before = Workspace(micro), Workspace(published_template).published("2026-W11")
    paths = {"songs": ws.songs, "song_stats": ws.song_stats, "interactions": ws.log / "sample.parquet",
             "impressions": ws.impressions / "sample.parquet"}
    for how in ("scramble", "multiply"):
        changed = perturb_future({n: pd.read_parquet(p) for n, p in paths.items()}, week_start("2026-W11"), how)
        for name, frame in changed.items():
            frame.to_parquet(paths[name], index=False)
    after = run_week(micro, week="2026-W11", level="ERROR").run.folder
    lists = [fingerprint(pd.read_parquet(run / "playlists.parquet")) for run in (before, after)]
    metrics = [[r for r in json.loads((run / "metrics.json").read_text())["rows"] if r["model"] not in ("informed ceiling", "oracle")]
               for run in (before, after)]
    assert lists[0] == lists[1] and metrics[0] == metrics[1]


def test_a_missed_monday_is_caught_up_once(micro: Path) -> None:
    """Nothing ran for weeks: one run makes the current week, not one for each that was missed."""
    assert needed(micro) == WEEK
    assert weekly.run_forever(micro, ticks=2, every_s=0) == 1
    assert needed(micro) is None and len(list(Workspace(micro).weeks.glob("*"))) == 1


def test_late_plays_do_not_disturb_a_resumed_run(micro: Path) -> None:
    """Plays at or after the boundary that arrive between kill and restart leave the run the same one."""
    from sunorecsys.data.log import EventStore
    first = open_run(micro, week=WEEK)
    EventStore(micro / "history.db").append_one("u000001", "s000001", first.as_of + pd.Timedelta(hours=1))
    assert open_run(micro, week=WEEK).folder == first.folder
    EventStore(micro / "history.db").append_one("u000001", "s000001", first.as_of - pd.Timedelta(hours=1))
    assert open_run(micro, week=WEEK).folder != first.folder
