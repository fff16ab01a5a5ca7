"""Speed of `evaluation.metrics` on codes (one thread): all metrics at k = 10, 20, 30, 50 for lists of 50 songs. Prints JSON."""
import json
import time
import tracemalloc

import numpy as np
import scipy.sparse as sp

from sunorecsys.evaluation.metrics import evaluate

def make(n_users: int, n_items: int, n: int, mean_relevant: int = 10) -> tuple[np.ndarray, sp.csr_array]:
    "Lists without duplicates and about ten relevant songs a listener, a tenth of them on the list."
    rng = np.random.default_rng(0)
    start, step = rng.integers(0, n_items, (n_users, 1)), rng.integers(1, n_items // n, (n_users, 1))
    rec = ((start + step * np.arange(n)) % n_items).astype(np.int32)
    rows = np.repeat(np.arange(n_users), rng.poisson(mean_relevant, n_users))
    cols = rng.integers(0, n_items, len(rows))
    listed = rng.random(len(rows)) < .1
    cols[listed] = rec[rows[listed], rng.integers(0, n, listed.sum())]
    return rec, sp.csr_array((np.ones(len(rows), bool), (rows, cols)), shape=(n_users, n_items))

def bench(n_users: int = 20_000, n_items: int = 50_000, n: int = 50, repeats: int = 5) -> dict:
    "Listeners per second (best of `repeats`) and peak bytes of arrays."
    rec, relevant = make(n_users, n_items, n)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluate(rec, relevant, ks=(10, 20, 30, 50))
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    evaluate(rec, relevant, ks=(10, 20, 30, 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"name": "metrics", "listeners": n_users, "songs": n_items, "n": n, "seconds": round(min(seconds), 4),
            "listeners_per_s": round(n_users / min(seconds)), "target_listeners_per_s": 100_000, "peak_mb": round(peak / 1e6, 1)}

if __name__ == "__main__":
    print(json.dumps([bench(), bench(n_users=100_000, repeats=3)], indent=1))
