"""Speed of fine ranking, re-ranking and the whole four stages on the listening of bench_channels, with random vectors. Prints JSON.

The click model has random weights where it only scores: what it says is of no account here, how fast is."""
import json
import resource
import time

import numpy as np
from bench_channels import draw
from bench_recall import Stored, described

from sunorecsys.config import DinConfig, HistoryConfig
from sunorecsys.recommenders.attention import Din, weights_of
from sunorecsys.recommenders.chaining import chained
from sunorecsys.recommenders.content_factors import ContentFactors
from sunorecsys.recommenders.din_ranker import Choice, DinRanker, Lessons, Teacher, one_pass
from sunorecsys.recommenders.hybrid import HybridRecommender, compose
from sunorecsys.recommenders.item_cf import ItemCF
from sunorecsys.recommenders.item_content_based import Content
from sunorecsys.recommenders.listening import Listening
from sunorecsys.recommenders.prompt_based import PromptBased
from sunorecsys.recommenders.quality_filter import QualityFilter
from sunorecsys.recommenders.rerank import about_songs, list_order
from sunorecsys.recommenders.snapshots import ROW, Lists, widened
from sunorecsys.recommenders.user_based import UserBased, unit
from sunorecsys.testing import AS_OF

FACTS, TASTES = 20, 132
clock = time.perf_counter


def training_rate(n_items: int, rng: np.random.Generator) -> float:
    "Impressions and plays, with what is drawn beside them, that an epoch reads per second; histories of fifty."
    users, weeks, rows, plays = 2000, 2, 2000, 16_000
    lists = Lists(np.ones(rows, int), rng.integers(0, users, rows), rng.integers(0, n_items, (rows, ROW)).astype(np.int32),
                  np.tile(np.arange(1, ROW + 1), (rows, 1)), rng.random((rows, ROW)) < .1)
    lessons = Lessons(rng.integers(0, n_items, (weeks, users, 50)).astype(np.int32), np.ones((weeks, users, 50), np.float32),
                      rng.standard_normal((weeks, n_items, FACTS)).astype(np.float32),
                      rng.standard_normal((weeks, users, TASTES)).astype(np.float32),
                      rng.standard_normal((n_items, TASTES)).astype(np.float32), lists,
                      (np.ones(plays, int), rng.integers(0, users, plays), rng.integers(0, n_items, plays)), np.ones((1, n_items), bool))
    c = DinConfig()
    t = Teacher(lessons, unit(rng.standard_normal((n_items, c.dim)).astype(np.float32)), rng.integers(-1, 5000, n_items), c, 0, 0)
    start = clock()
    one_pass(t, rng)
    return (rows * ROW + plays * (1 + c.negatives)) / (clock() - start)


def click_model(x: Listening, as_of: object, rng: np.random.Generator) -> DinRanker:
    "A ranker with random weights and random interests: six restarts of 300 points."
    c, items, n = DinConfig(), x.items, len(x.items)
    net = Din(unit(rng.standard_normal((n, c.dim)).astype(np.float32)), rng.integers(-1, 5000, n), FACTS, c.hidden, c.deep, c.dropout)
    model = DinRanker(history=HistoryConfig(last_n=50))
    model.items, model.listeners, model.as_of, model.choice = items, x.users.hash, as_of, Choice(1)
    facts = rng.standard_normal((n, FACTS)).astype(np.float32)
    told = {"facts": facts, "clicks": np.array(True), "intercept": np.float32(0), "seeds": widened(x.history, 50).item_idx,
            "tastes": rng.standard_normal((len(x.users), TASTES)).astype(np.float32),
            "places": rng.standard_normal((n, TASTES)).astype(np.float32), "strength": np.float32(2),
            "spots": rng.standard_normal((6, 300, TASTES)).astype(np.float32)}
    told |= {f"interest.{k}": rng.standard_normal(shape).astype(np.float32) for k, shape in {
        "features": (n, 96), "own": (6, n, 6), "points": (6, 300, 102), "log_z": (6, 300)}.items()}
    model.arrays = {f"net.{k}": v for k, v in weights_of(net).items()} | told
    return model


def whole(n_users: int, n_items: int, n_plays: int, rng: np.random.Generator) -> HybridRecommender:
    "A hybrid of six channels, the click model, quality, variety and order."
    first = ItemCF().fit(interactions=draw(n_users, n_items, n_plays), as_of=AS_OF)
    x, maker = first.x, rng.integers(0, 5000, len(first.x.items)).astype(str)
    songs = described(x.items.ids).assign(prompt="a prompt", creator_id=maker)
    more = (ItemCF("transitions"), UserBased(), Content(), ContentFactors(), PromptBased())
    channels = {first.channel: first} | {m.channel: m.fit_on(x, AS_OF, songs=songs, embeddings={"audio": Stored(), "text": Stored()})
                                         for m in more}
    quality = QualityFilter().fit(songs=songs, as_of=AS_OF)
    about = about_songs(songs, x.items, {"audio": Stored()}, Stored())
    return compose(HybridRecommender(), channels, quality, about, din=click_model(x, AS_OF, rng))


def run(n_users: int = 20_000, n_items: int = 50_000, n_plays: int = 2_000_000, some: int = 2000) -> dict:
    "Rates of each part, of all four stages, and milliseconds for one listener on request."
    rng, out = np.random.default_rng(0), {"name": "ranking", "listeners": n_users, "songs": n_items}
    out["din_training_examples_per_s"] = round(training_rate(n_items, rng))
    model = whole(n_users, n_items, n_plays, rng)
    who = np.argsort(-np.diff(model.x.seen.indptr))[:some] # those with the most seeds: fifty each
    history = model.x.history.rows(who)
    items = rng.integers(0, len(model.x.items), (some, 200)).astype(np.int32)
    items.sort(axis=1)
    model.din.score(history.rows(slice(0, 50)), items[:50], who[:50])
    start = clock()
    model.din.score(history, items, who)
    out["din_pairs_per_s"] = round(items.size / (clock() - start))
    score = -np.sort(-rng.standard_normal(items.shape).astype(np.float32))
    start = clock()
    order = list_order(items, score, model.about, 30, creator_cap=3, variety=.3, cold=model.cold, cold_share=.1)[0]
    chained(np.take_along_axis(items, order, 1), model.about.chain)
    out["rerank_lists_per_s"] = round(some / (clock() - start))
    names = model.x.users.ids[who].tolist()
    model.recommend(user_ids=names[:100])
    start = clock()
    model.recommend(user_ids=names)
    out["four_stages_listeners_per_s"] = round(some / (clock() - start))
    single = []
    for name in names[:200]:
        start = clock()
        model.recommend(name)
        single.append((clock() - start) * 1000)
    out |= {f"one_listener_p{q}_ms": round(float(np.percentile(single, q)), 1) for q in (50, 99)}
    return out | {"peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
