"""The log and weekly mixing at 20,000 listeners, 50,000 songs and 2 million plays: `run()` gives the figures."""

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sunorecsys.data.log import EventStore, append_partition, microseconds, read_log
from sunorecsys.data.user_history import UserHistoryManager, weekly_mix
from sunorecsys.schema import Col

AS_OF = "2026-11-16"
SINGLES, WRITERS, BATCH = 500, 8, 20_000

def plays(users: int, songs: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    "Codes, times and the frame of `n` plays, unsorted, over half a year before `AS_OF`; a few songs have most of them."
    rng = np.random.default_rng(0)
    u, i = rng.integers(0, users, n).astype(np.int32), (songs * rng.random(n) ** 3).astype(np.int32)
    t = microseconds(AS_OF) - rng.integers(1, 180 * 86_400_000_000, n)
    names = [pd.Series([f"{kind}{k:06d}" for k in range(size)], dtype="str") for kind, size in (("user", users), ("song", songs))]
    columns = {Col.USER: names[0].take(u).array, Col.SONG: names[1].take(i).array, Col.TIME: pd.to_datetime(t, unit="us", utc=True)}
    return u, i, t, pd.DataFrame(columns)

def seconds(work: Any) -> float:
    "How long a call takes."
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

def write(path: Path, worker: int, n: int, ready: Any = None) -> None:
    "Append `n` single plays; with a barrier, once everybody is ready."
    store, now = EventStore(path), pd.Timestamp(AS_OF, tz="UTC")
    store.append_one(f"user{worker:06d}", "warm-up", now)
    if ready is not None:
        ready.wait()
    for k in range(n):
        store.append_one(f"user{worker:06d}", f"song{k:06d}", now)

def writers(path: Path) -> float:
    "Seconds for `WRITERS` processes to append `SINGLES` plays each."
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(WRITERS + 1)
    processes = [context.Process(target=write, args=(path, w, SINGLES, ready)) for w in range(WRITERS)]
    for p in processes:
        p.start()
    ready.wait()
    taken = seconds(lambda: [p.join() for p in processes])
    assert len(EventStore(path).read()) == WRITERS * (SINGLES + 1)
    return taken

def run(users: int = 20_000, songs: int = 50_000, n: int = 2_000_000) -> dict[str, float]:
    "Figures: rows per second, seconds and megabytes."
    u, i, t, frame = plays(users, songs, n)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "single.db", 0, 1)
        out["single_appends_per_s"] = SINGLES / seconds(lambda: write(root / "single.db", 1, SINGLES))
        out[f"single_appends_per_s_{WRITERS}_processes"] = WRITERS * SINGLES / writers(root / "many.db")
        out["batch_appends_per_s"] = BATCH / seconds(lambda: EventStore(root / "batch.db").append(frame.iloc[:BATCH]))
        out["append_partition_s"] = seconds(lambda: append_partition(root / "log", frame))
        out["append_all_to_database_s"] = seconds(lambda: EventStore(root / "history.db").append(frame))
        files, database = UserHistoryManager(workspace=root / "files"), UserHistoryManager(root / "history.db")
        files.folder = root / "log"
        out["weekly_mix_s"] = seconds(lambda: weekly_mix(u, i, t, last_n=50, as_of=AS_OF))
        out["last_n_interactions_from_partitions_s"] = seconds(lambda: files.last_n_interactions(as_of=AS_OF))
        out["last_n_interactions_from_database_s"] = seconds(lambda: database.last_n_interactions(as_of=AS_OF))
        out["get_user_interactions_from_database_s"] = seconds(lambda: database.get_user_interactions("user000001", as_of=AS_OF))
        out["read_log_partitions_s"] = seconds(lambda: read_log((root / "log", None), before=AS_OF))
        out["read_log_database_s"] = seconds(lambda: read_log((None, root / "history.db"), before=AS_OF))
    out["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {k: round(v, 4 if v < 1 else 2) for k, v in out.items()}

if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
