"""Ingest a generated CSV of many plays; seconds and peak memory of a process of its own.

    python benchmarks/bench_ingest.py [rows] [--event-ids]
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

MAPPING = {"user_id": "uid", "song_id": "track", "timestamp": "ts", "weight": "plays"}
CHILD = """
import json, re, sys, time
from sunorecsys.data.sources import ingest
path, root, mapping = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
began = time.perf_counter()
report = ingest("table", path, root, mapping=mapping, time_unit="s", progress=False)
seconds = time.perf_counter() - began
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": seconds, "peak_mb": peak, "interactions": report.counts.interactions, "songs": report.counts.stubs}))
"""

def write_plays(path: Path, rows: int, event_ids: bool, n_users: int = 200_000, n_songs: int = 50_000, seed: int = 0) -> None:
    "A CSV of `rows` plays over two years, half a million at a time."
    rng, writer = np.random.default_rng(seed), None
    for start in range(0, rows, 500_000):
        n = min(500_000, rows - start)
        columns = {
            "uid": pa.array(rng.integers(0, n_users, n)).cast(pa.string()),
            "track": pa.array(rng.integers(0, n_songs, n)).cast(pa.string()),
            "ts": pa.array(rng.integers(1_700_000_000, 1_763_000_000, n)), "plays": pa.array(rng.integers(1, 5, n))}
        if event_ids:
            columns["event_id"] = pa.array(np.arange(start, start + n)).cast(pa.string())
        table = pa.table(columns)
        writer = writer or pa_csv.CSVWriter(str(path), table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()

def run(rows: int = 10_000_000, event_ids: bool = False) -> dict:
    "Write the file, ingest it in a subprocess, measure, remove it."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plays.csv"
        write_plays(path, rows, event_ids)
        size = path.stat().st_size
        began = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", CHILD, str(path), str(Path(folder) / "workspace"), json.dumps(MAPPING)],
                             check=True, capture_output=True, text=True)
        wall = time.perf_counter() - began
        partition = sum(p.stat().st_size for p in (Path(folder) / "workspace/log").glob("*.parquet"))
    got = json.loads(out.stdout)
    return {"rows": rows, "event_ids": event_ids, "csv_mb": round(size / 1e6, 1), "partition_mb": round(partition / 1e6, 1),
            "seconds": round(got["seconds"], 1), "seconds_with_start": round(wall, 1), "rows_per_second": round(rows / got["seconds"]),
            "peak_mb": round(got["peak_mb"]), "interactions": got["interactions"], "songs": got["songs"], "limit_peak_mb": 1500}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="?", type=int, default=10_000_000)
    parser.add_argument("--event-ids", action="store_true")
    args = parser.parse_args()
    print(json.dumps(run(args.rows, args.event_ids), indent=1))
