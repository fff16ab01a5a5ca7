"""Speed of the other channels of recall and of the blend, on the listening of bench_channels; EASE at 20,000 songs. Prints JSON.

Of the two networks and of ELSA a part of the training is timed: an epoch, a round, twenty thousand pairs."""
import json
import resource
import time

import numpy as np
import pandas as pd
from bench_channels import answers, draw

from sunorecsys.codes import Candidates
from sunorecsys.recommenders.blending import Blend, shortlist, union
from sunorecsys.recommenders.content_factors import ContentFactors
from sunorecsys.recommenders.elsa import elsa_vectors
from sunorecsys.recommenders.interests import Interests
from sunorecsys.recommenders.item_cf import ItemCF
from sunorecsys.recommenders.item_content_based import Content
from sunorecsys.recommenders.listening import Listening, bare_songs
from sunorecsys.recommenders.rerank import list_order, nothing_known
from sunorecsys.recommenders.two_tower import TwoTower
from sunorecsys.schema import Col
from sunorecsys.testing import AS_OF

K = 200


class Stored:
    "Random unit vectors of 128 dimensions for every song: speed does not depend on what they mean."
    def vectors(self, song_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        v = np.random.default_rng(0).standard_normal((len(song_ids), 128)).astype(np.float32)
        return v / np.linalg.norm(v, axis=1, keepdims=True), np.zeros(len(song_ids), bool)


def described(ids: np.ndarray) -> pd.DataFrame:
    "Songs with three of two hundred tags and one of twenty genres."
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 200, (len(ids), 3)).astype(str)
    return bare_songs(ids).assign(**{Col.TAGS: list(tags), Col.GENRE: rng.integers(0, 20, len(ids)).astype(str)})


def blend_rate(parts: list[Candidates], n_items: int, facts: np.ndarray) -> float:
    "Listeners per second from the channels' candidates to lists of thirty."
    start = time.perf_counter()
    for i in range(0, len(parts[0].user_idx), 2048):
        at = slice(i, i + 2048)
        block = union([Candidates(p.user_idx[at], p.item_idx[at], p.scores[at], p.channels) for p in parts])
        c = len(block.channels)
        blend = Blend(block.channels, np.ones((1, 3 * c + facts.shape[1]), np.float32), np.ones(c, np.float32))
        best = shortlist(block, blend, 200, facts=facts, stay=block.item_idx >= 0)
        best.at(list_order(best.items, best.score, nothing_known(n_items), 30, creator_cap=3, cold=facts[:, 1] > 0, cold_share=.1)[0])
    return len(parts[0].user_idx) / (time.perf_counter() - start)


def networks(x: Listening, songs: pd.DataFrame) -> dict:
    "An epoch of ELSA; pairs per second of the two-tower; a round of the interests; listeners per second of the latter two."
    clock, out = time.perf_counter, {}
    start = clock()
    elsa_vectors(x.liked, 256, 1)
    out["elsa_epoch_s"] = round(clock() - start, 1)
    seconds = []
    for epochs in (1, 2):
        towers = TwoTower(start="random", judges=0, epochs=epochs, examples=20_000)
        start = clock()
        towers.fit_on(x, AS_OF, songs=songs, embeddings={"audio": Stored()})
        seconds.append(clock() - start)
    out |= {"two_tower_pairs_per_s": round(20_000 / (seconds[1] - seconds[0])), "two_tower_listeners_per_s": round(answers(towers)[0])}
    seconds = []
    for rounds in (1, 3):
        start = clock()
        Interests(restarts=1, rounds=rounds).fit_on(x, AS_OF, songs=songs, embeddings={"audio": Stored()})
        seconds.append((clock() - start) / 2)
    many = Interests(restarts=1, rounds=1, steps=1).fit_on(x, AS_OF, songs=songs)
    return out | {"interests_round_s": round(seconds[1] - seconds[0], 2), "interests_listeners_per_s": round(answers(many)[0])}


def run(n_users: int = 20_000, n_items: int = 50_000, n_plays: int = 2_000_000) -> dict:
    "Seconds to fit, listeners per second for 200 candidates, the blend of five channels, peak memory."
    clock, out = time.perf_counter, {"name": "recall", "listeners": n_users, "songs": n_items, "plays": n_plays}
    first = ItemCF().fit(interactions=draw(n_users, n_items, n_plays), as_of=AS_OF)
    songs, models = described(first.x.items.ids), [first]
    for name, model in (("transitions", ItemCF("transitions")), ("content", Content()), ("content_factors", ContentFactors())):
        start = clock()
        model.fit_on(first.x, AS_OF, songs=songs, embeddings={"audio": Stored()})
        out[f"{name}_fit_s"] = round(clock() - start, 1)
        out[f"{name}_listeners_per_s"] = round(answers(model)[0])
        models.append(model)
    parts = [m.candidates(np.arange(len(first.x.users)), K) for m in models]
    fifth = Candidates(parts[0].user_idx, np.roll(parts[0].item_idx, 1, axis=0), parts[0].scores, ("fifth",)) # somebody else's candidates
    out["blend_listeners_per_s"] = round(blend_rate([*parts, fifth], n_items, first.x.facts))
    out |= networks(first.x, songs)
    out["peak_rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    del models, parts, fifth, first
    some = ItemCF("ease")
    plays = draw(n_users, 20_000, n_plays)
    start = clock()
    some.fit(interactions=plays, as_of=AS_OF)
    out |= {"ease_songs": len(some.x.items), "ease_fit_s": round(clock() - start, 1), "ease_listeners_per_s": round(answers(some)[0]),
            "ease_peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    return out


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
