"""Speed of the collaborative channels on power-law random listening: fit, and candidates for every listener. Prints JSON."""
import json
import resource
import time

import numpy as np
import pandas as pd
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from sunorecsys.recommenders.item_cf import ItemCF
from sunorecsys.recommenders.user_based import UserBased, confidence
from sunorecsys.schema import Col
from sunorecsys.testing import AS_OF

K = 200

def draw(n_users: int, n_items: int, n_plays: int, seed: int = 0) -> pd.DataFrame:
    "Plays of twenty weeks: listeners' activity lognormal(0, 1), songs' popularity ~ rank^-0.9, independent of each other."
    rng = np.random.default_rng(seed)
    activity = np.cumsum(rng.lognormal(0, 1, n_users))
    popularity = np.cumsum(rng.permutation((np.arange(n_items) + 10.0) ** -.9))
    user = np.searchsorted(activity, rng.random(n_plays) * activity[-1])
    item = np.searchsorted(popularity, rng.random(n_plays) * popularity[-1])
    names = [pd.array([f"{kind}{i}" for i in range(n)], dtype="str") for kind, n in (("u", n_users), ("s", n_items))]
    time_ = AS_OF - pd.to_timedelta(rng.integers(1, 20 * 7 * 86_400, n_plays), "s")
    return pd.DataFrame({Col.USER: names[0].take(user), Col.SONG: names[1].take(item), Col.TIME: time_.as_unit("us"),
                         Col.TYPE: pd.array(["play"], dtype="str").take(np.zeros(n_plays, int)), Col.WEIGHT: 1.0})

def answers(model: ItemCF | UserBased) -> tuple[float, float]:
    "(listeners/s for K candidates each, share of places filled) for all listeners at once."
    users = np.arange(len(model.x.users))
    model.candidates(users[:256], K)  # first calls load and compile nothing twice
    start = time.perf_counter()
    got = model.candidates(users, K)
    return len(users) / (time.perf_counter() - start), float((got.item_idx >= 0).mean())

def run(n_users: int = 20_000, n_items: int = 50_000, n_plays: int = 2_000_000) -> dict:
    "Seconds, listeners per second and peak memory of both channels, beside their targets."
    plays = draw(n_users, n_items, n_plays)
    clock = time.perf_counter
    start = clock()
    item_cf = ItemCF().fit(interactions=plays, as_of=AS_OF)
    item_s = clock() - start
    start = clock()
    item_cf._fit()
    neighbours_s = clock() - start
    del plays

    user_based = UserBased()
    user_based.x, user_based.as_of = item_cf.x, AS_OF
    direct_s, ours_s = [], []
    c = confidence(item_cf.x.liked, user_based.alpha)
    for _ in range(2):  # in turns, so that a busy machine is fair to both
        with threadpool_limits(1, "blas"):
            direct = AlternatingLeastSquares(factors=user_based.n_factors, regularization=user_based.regularization, alpha=1.0,
                                             iterations=user_based.n_iterations, random_state=0)
            start = clock()
            direct.fit(c, show_progress=False)
        direct_s.append(clock() - start)
        start = clock()
        user_based._fit()
        ours_s.append(clock() - start)
    same = bool(np.array_equal(direct.user_factors, user_based.model.user_factors))

    item_rate, item_filled = answers(item_cf)
    user_rate, user_filled = answers(user_based)
    return {
        "name": "channels", "listeners": n_users, "songs": n_items, "plays": n_plays, "pairs": int(item_cf.x.liked.nnz),
        "item_cf_fit_s": round(item_s, 2), "item_cf_fit_s_target": 20.0, "of_which_neighbours_s": round(neighbours_s, 2),
        "als_fit_s": round(min(ours_s), 2), "als_fit_ratio": round(min(ours_s) / min(direct_s), 3), "als_fit_ratio_target": 1.15,
        "als_same_factors_as_direct": same,
        "item_cf_listeners_per_s": round(item_rate), "item_cf_filled": round(item_filled, 3),
        "user_based_listeners_per_s": round(user_rate), "user_based_filled": round(user_filled, 3), "listeners_per_s_target": 5000,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2), "peak_rss_gb_target": 3.0}

if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
