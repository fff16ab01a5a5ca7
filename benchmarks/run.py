"""The speed benchmarks, each in a process of its own: a table beside the targets, and `data/bench.json` with the machine.

Run by hand: bench_encoders.py (speed of each encoder) and bench_index.py (a graph over a million vectors takes many minutes).

    python benchmarks/run.py [name …]      names: weekly channels recall ranking history metrics simulate ingest extract
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "data" / "bench.json"

# figure -> (benchmark, key, sense, target, unit)
TARGETS = {
    "make weekly after installation": ("weekly", "make_weekly_s", "<=", 360, "s"),
    "item-CF fit": ("channels", "item_cf_fit_s", "<=", 20, "s"),
    "ALS fit, ratio to implicit": ("channels", "als_fit_ratio", "<=", 1.15, ""),
    "item-CF, 200 candidates": ("channels", "item_cf_listeners_per_s", ">=", 5000, "listeners/s"),
    "user-CF, 200 candidates": ("channels", "user_based_listeners_per_s", ">=", 5000, "listeners/s"),
    "peak memory of both channels": ("channels", "peak_rss_gb", "<=", 3, "GB"),
    "transitions, 200 candidates": ("recall", "transitions_listeners_per_s", ">=", 5000, "listeners/s"),
    "content, 200 candidates": ("recall", "content_listeners_per_s", ">=", 5000, "listeners/s"),
    "factors from content, 200 candidates": ("recall", "content_factors_listeners_per_s", ">=", 5000, "listeners/s"),
    "two-tower, 200 candidates": ("recall", "two_tower_listeners_per_s", ">=", 5000, "listeners/s"),
    "interests, 200 candidates": ("recall", "interests_listeners_per_s", ">=", 5000, "listeners/s"),
    "two-tower, training": ("recall", "two_tower_pairs_per_s", ">=", 50_000, "pairs/s"),
    "ELSA, an epoch": ("recall", "elsa_epoch_s", "<=", 20, "s"),
    "blend of five channels": ("recall", "blend_listeners_per_s", ">=", 2000, "listeners/s"),
    "peak memory of recall, without EASE": ("recall", "peak_rss_gb", "<=", 6, "GB"),
    "EASE fit at 20k songs": ("recall", "ease_fit_s", "<=", 110, "s"),
    "EASE, peak memory": ("recall", "ease_peak_rss_gb", "<=", 6, "GB"),
    "DIN, training": ("ranking", "din_training_examples_per_s", ">=", 20_000, "examples/s"),
    "DIN, scoring 200 candidates, 50 seeds": ("ranking", "din_pairs_per_s", ">=", 150_000, "pairs/s"),
    "re-ranking and chaining": ("ranking", "rerank_lists_per_s", ">=", 2500, "lists/s"),
    "four stages": ("ranking", "four_stages_listeners_per_s", ">=", 250, "listeners/s"),
    "one listener on request, median": ("ranking", "one_listener_p50_ms", "<=", 30, "ms"),
    "one listener on request, 99th percentile": ("ranking", "one_listener_p99_ms", "<=", 100, "ms"),
    "peak memory of ranking": ("ranking", "peak_rss_gb", "<=", 6, "GB"),
    "last-n of all listeners, partitions": ("history", "last_n_interactions_from_partitions_s", "<=", 3, "s"),
    "last-n of all listeners, database": ("history", "last_n_interactions_from_database_s", "<=", 3, "s"),
    "durable single appends": ("history", "single_appends_per_s", ">=", 200, "/s"),
    "batch appends": ("history", "batch_appends_per_s", ">=", 5000, "/s"),
    "metrics of 50 recommendations": ("metrics", "listeners_per_s", ">=", 100_000, "listeners/s"),
    "simulate 50k songs, 20k listeners": ("simulate", "seconds", "<=", 120, "s"),
    "peak memory of the simulation": ("simulate", "peak_gib", "<=", 4, "GiB"),
    "ingest 10M rows, peak memory": ("ingest", "peak_mb", "<=", 1500, "MB"),
    "embed 10k songs with mfcc, peak memory": ("extract", "peak_rss_gb", "<=", 2, "GB"),
    "embed FLAC with the tiny CLAP": ("extract", "tiny_clap_times_real_time", ">=", 300, "× real time"),
    "CLAP of full size: model alone / all": ("extract", "clap_pipeline_ratio", ">=", 0.85, ""),
    "prompts with the tiny CLAP": ("extract", "tiny_clap_prompts_per_s", ">=", 500, "/s"),
}


def machine() -> dict:
    """What the figures were measured on."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "ram_gib": round(ram, 1), "system": platform.platform(terse=True),
            "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2), "ten_million_additions_s": speed()}


def speed() -> float:
    """Seconds that ten million additions in Python take: a shared machine may be three times slower at one moment than at another."""
    start, total = time.perf_counter(), 0
    for i in range(10_000_000):
        total += i
    return round(time.perf_counter() - start, 2)


def measure(name: str) -> dict | list:
    """Run one benchmark; its error ends the run, for a figure that was not measured must not look like one."""
    done = subprocess.run([sys.executable, str(HERE / f"bench_{name}.py")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench_{name}.py failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main(names: list[str]) -> int:
    """Measure, print, save; 1 when a target is missed."""
    about, results, missed = machine(), {}, 0
    print(json.dumps(about))
    for name in names or dict.fromkeys(t[0] for t in TARGETS.values()):
        print(f"… {name}", file=sys.stderr)
        results[name] = measure(name)
        first = results[name][0] if isinstance(results[name], list) else results[name]
        for figure, (bench, key, sense, target, unit) in TARGETS.items():
            if bench == name:
                value = first[key]
                ok = value <= target if sense == "<=" else value >= target
                missed += not ok
                print(f"{figure:<38}{value:>12,.5g} {unit:<12} {sense} {target:<8,g} {'ok' if ok else 'MISSED'}", flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    print(f"everything measured: {OUT.relative_to(HERE.parent)}")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
