"""Speed of `embeddings.index` in 1M x 128 clustered vectors (simulated: a mixture of 1,000 Gaussians): exact, graph, add. Prints JSON.

    python benchmarks/bench_index.py [songs [queries]]      wall-clock figures depend on what else runs; *_per_cpu_s do so less
"""
import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from sunorecsys.embeddings.index import VectorIndex

DIM, CLUSTERS, SPREAD = 128, 1000, 0.5

def mixture(n: int, seed: int) -> np.ndarray:
    "float32 (n, DIM) unit rows: standard normal centres, songs around them with standard deviation SPREAD in each direction."
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIM), dtype=np.float32)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, DIM), dtype=np.float32)
    x *= np.float32(SPREAD)
    x += centres[rng.integers(0, CLUSTERS, n)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x

def timed(work: Callable) -> tuple[object, float, float]:
    "(what `work` returns, seconds by the wall, seconds of all cores)."
    wall, cpu = time.perf_counter(), time.process_time()
    out = work()
    return out, time.perf_counter() - wall, time.process_time() - cpu

def run(n: int = 1_000_000, n_queries: int = 2000) -> dict:
    "Build, search and add, exact and as a graph; recall@10 of the graph on held-out queries."
    x, q = mixture(n, 1), mixture(n_queries, 2)
    ids = np.array([f"s{i:07d}" for i in range(n)], object)
    exact = VectorIndex.build(ids, x, exact_up_to=n)
    few = q[:max(n_queries // 4, 1)]
    exact.search(few[:32], 10)  # first calls load and map
    (truth, _), exact_s, exact_cpu = timed(lambda: exact.search(few, 10))
    _, add_s, _ = timed(lambda: exact.add([f"new{i}" for i in range(100)], q[:100]))
    exact = None
    graph, build_s, build_cpu = timed(lambda: VectorIndex.build(ids, x, exact_up_to=0))
    graph.search(q[:32], 10)
    (found, _), graph_s, graph_cpu = timed(lambda: graph.search(q, 10))
    return {
        "name": "index", "songs": n, "dim": DIM, "data": "simulated mixture of Gaussians",
        "exact_queries_per_s": round(len(few) / exact_s, 1),
        "exact_queries_per_cpu_s": round(len(few) / exact_cpu, 1), "exact_add_100_s": round(add_s, 3),
        "hnsw_build_s": round(build_s, 1),
        "hnsw_build_cpu_s": round(build_cpu, 1), "hnsw_ef_search": graph.ef_search, "hnsw_recall_at_10_when_built": round(graph.recall, 4),
        "hnsw_recall_at_10": round(float(np.mean([np.isin(a, b).mean() for a, b in zip(found, truth, strict=False)])), 4),
        "hnsw_queries_per_s": round(n_queries / graph_s), "hnsw_queries_per_cpu_s": round(n_queries / graph_cpu),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}

if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=1))
