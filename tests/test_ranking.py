"""Fine ranking and re-ranking at their edges: what attention is for, odd candidates, other processes."""
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sunorecsys.codes import History
from sunorecsys.config import HistoryConfig, InterestsConfig
from sunorecsys.embeddings.flow import FlowEncoder
from sunorecsys.embeddings.store import EmbeddingStore
from sunorecsys.evaluation.predictions import gauc
from sunorecsys.evaluation.report import one_list
from sunorecsys.recommenders.chaining import chained
from sunorecsys.recommenders.din_ranker import DinRanker
from sunorecsys.recommenders.hybrid import HybridRecommender, week_lists
from sunorecsys.recommenders.listening import listen
from sunorecsys.recommenders.rerank import About, list_order
from sunorecsys.schema import Col, validate
from sunorecsys.testing import AS_OF, toy_tables
from sunorecsys.weekly import run_week
from sunorecsys.workspace import Workspace, write_json, write_table

QUICK = {"user_based": {"n_factors": 8}, "interests": {"restarts": 1, "rounds": 5, "n_interests": 6, "points": 20},
         "two_tower": {"epochs": 1}, "din": {"epochs": 2}, "n_recall": 20}


def two_interests(seed=0, users=150, songs=160, weeks=6):
    """Songs on a circle; every listener likes two opposite places of it, so that the mean of what they play says nothing; all songs are
    shown alike, and a song near either place is clicked."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, songs)
    mine = rng.uniform(0, np.pi, users)
    fits = np.cos(angle[None] - mine[:, None])**2  # near the place or opposite to it
    start = AS_OF - weeks * pd.Timedelta(weeks=1)

    def times(n):
        return start + pd.to_timedelta(rng.uniform(0, weeks * 7 * 86_400 - 1, n), "s")
    plays, shown = [], []
    for u in range(users):
        liked = rng.choice(songs, 40, p=fits[u]**6 / (fits[u]**6).sum())
        plays.append(pd.DataFrame({Col.USER: f"u{u:03d}", Col.SONG: liked, Col.TIME: times(40)}))
        seen = rng.integers(0, songs, 20 * weeks)
        clicked = rng.random(len(seen)) < .02 + .5 * fits[u, seen]**4
        week = np.repeat(np.arange(weeks), 20)
        when = start + pd.to_timedelta(week * 7 * 86_400 + 3600, "s")
        shown.append(pd.DataFrame({Col.LIST: [f"{w}-{u}" for w in week], Col.USER: f"u{u:03d}", Col.SONG: seen, Col.TIME: when,
                                   Col.POSITION: np.tile(np.arange(1, 21), weeks), Col.CLICKED: clicked.astype(int)}))
    tables = {"interactions": pd.concat(plays, ignore_index=True), "impressions": pd.concat(shown, ignore_index=True)}
    tables = {k: validate(t.assign(**{Col.SONG: [f"s{i:03d}" for i in t[Col.SONG]]}), k)[0] for k, t in tables.items()}
    ids = [f"s{i:03d}" for i in range(songs)]
    tables["songs"] = validate(pd.DataFrame({Col.SONG: ids, Col.TITLE: ids}), "songs")[0]
    x = listen(tables["interactions"], tables["songs"], AS_OF)
    place = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    known = SimpleNamespace(as_of=AS_OF, x=x, config=InterestsConfig(), arrays={
        "features": place, "own": np.zeros((1, songs, 0), np.float32), "log_z": np.zeros((1, 500), np.float32),
        "points": rng.standard_normal((1, 500, 2)).astype(np.float32)})
    asked = np.tile(np.arange(songs, dtype=np.int32), (users, 1))
    clicked = rng.random(asked.shape) < .02 + .5 * fits**4
    return tables, known, asked, clicked


def test_attention_finds_two_interests_where_the_mean_finds_none():
    tables, known, asked, clicked = two_interests()
    score = {}
    for kind in ("linear", "mean", "din"):
        model = DinRanker(kind=kind, epochs=4, use_interests=False).fit(**tables, as_of=AS_OF, interests=known, progress=False)
        z = model.score(known.x.history, asked)
        score[kind] = gauc(z.ravel(), clicked.ravel(), np.repeat(np.arange(len(asked)), asked.shape[1]))
    assert score["din"] > .8, score
    assert score["din"] > score["mean"] + .05, score
    assert score["din"] > score["linear"] + .2, score


@pytest.fixture(scope="module")
def fitted():
    tables = toy_tables()
    return HybridRecommender(**QUICK).fit(**tables, as_of=AS_OF)


def test_many_candidates_one_candidate_and_nobody(fitted):
    din, n = fitted.din, len(fitted.x.items)
    many = np.random.default_rng(0).integers(0, n, (3, 10_000)).astype(np.int32)
    h = fitted.x.history.rows(slice(0, 3))
    z = din.score(h, many)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(din.score(h, many[:, :1])[:, 0], z[:, 0], rtol=1e-5)
    nobody = History(np.full((3, 4), -1, np.int32), np.zeros((3, 4), np.float32))
    assert np.isfinite(din.score(nobody, many[:, :5])).all()
    assert din.score(h, np.full((3, 2), -1, np.int32)).tolist() == [[0, 0]] * 3
    assert din.score(h, np.empty((3, 0), np.int32)).shape == (3, 0)


def test_one_creator_and_none():
    rng = np.random.default_rng(0)
    items = np.array([rng.permutation(200)[:60] for _ in range(5)], np.int32)
    score = -np.sort(-rng.standard_normal(items.shape).astype(np.float32))
    v = rng.standard_normal((200, 8)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    none = np.full(200, -1, np.int32)
    for variety in (0.0, .3):
        one = list_order(items, score, About(np.zeros(200, np.int32), none, v, none, v), 30, creator_cap=3, variety=variety)[0]
        assert all(len(set(row)) == 30 for row in one)  # a full list, though all are of one creator
        free = list_order(items, score, About(none, none, v, none, v), 30, creator_cap=1, variety=variety)[0]
        assert all(len(set(row)) == 30 for row in free)
    assert (free == list_order(items, score, About(none, none, v, none, v), 30, creator_cap=99, variety=.3)[0]).all()


def test_songs_without_vectors_stand_anywhere():
    v = np.zeros((9, 4), np.float32)
    items = np.arange(8, dtype=np.int32)[None]
    assert sorted(chained(items, v)[0]) == list(range(8))
    none = np.full(9, -1, np.int32)
    order, _ = list_order(items, -items.astype(np.float32), About(none, none, v, none, v), 5, creator_cap=3, variety=.5)
    assert order[0].tolist() == [0, 1, 2, 3, 4]


def test_lists_carry_stages_and_a_playing_order(fitted):
    lists = fitted.recommend(user_ids=fitted.x.users.ids[:5].tolist(), n=6)
    for _, mine in lists.groupby(Col.USER):
        assert sorted(mine[Col.PLAY_ORDER]) == list(range(1, len(mine) + 1))
        assert mine.loc[mine["rank"] == 1, Col.PLAY_ORDER].item() == 1  # the best song opens the list
    assert {"stage_recall", "stage_din"} <= set(lists)
    found = lists[lists["channel"] != "popularity"]
    assert found["stage_din"].notna().all()


def test_without_dates_there_is_no_click_model():
    tables = toy_tables()
    undated = tables["interactions"].assign(**{Col.TIME: pd.Series(pd.NaT, tables["interactions"].index, dtype="datetime64[us, UTC]")})
    model = HybridRecommender(**QUICK).fit(**tables | {"interactions": undated}, as_of=AS_OF)
    assert model.din is None
    assert "plays with dates" in model.absent["din"]
    assert len(model.recommend("u03", n=4)) == 4


def test_a_ranker_of_another_catalogue_is_refused(fitted):
    from sunorecsys.recommenders.hybrid import compose
    tables = toy_tables(n_songs=30)
    other = DinRanker(epochs=1, history=HistoryConfig(last_n=5)).fit(**tables, as_of=AS_OF, progress=False)
    with pytest.raises(ValueError, match="click model was fitted on other songs"):
        compose(HybridRecommender(**QUICK), fitted.channels, fitted.quality, fitted.about, din=other)


def test_scores_are_the_same_in_another_process(fitted, tmp_path):
    fitted.din.save(tmp_path / "din")
    h = fitted.x.history
    np.savez(tmp_path / "in.npz", item_idx=h.item_idx, weight=h.weight)
    code = f"""
import numpy as np
from pathlib import Path
from sunorecsys.codes import History
from sunorecsys.recommenders.din_ranker import DinRanker
a = np.load(r"{tmp_path}/in.npz")
items = np.tile(np.arange(7, dtype=np.int32), (len(a["item_idx"]), 1))
model, h, users = DinRanker.load(Path(r"{tmp_path}/din")), History(a["item_idx"], a["weight"]), np.arange(len(items))
np.save(r"{tmp_path}/out.npy", np.stack([model.score(h, items), model.score(h, items, users)]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    items = np.tile(np.arange(7, dtype=np.int32), (len(h), 1))
    folded, known = fitted.din.score(h, items), fitted.din.score(h, items, np.arange(len(h)))
    assert (np.load(tmp_path / "out.npy") == np.stack([folded, known])).all()
    assert np.abs(folded - known).max() > 1e-4  # stored listeners are known by their sessions


def test_songs_of_which_only_ids_are_known():
    "No creators, genres, titles, tags or vectors: a list all the same, and nobody is taken for one creator."
    tables = toy_tables()
    bare = tables["songs"][[Col.SONG, Col.CREATED]]
    model = HybridRecommender(**QUICK, n=6).fit(**tables | {"songs": bare}, as_of=AS_OF)
    assert (model.about.creators == -1).all()
    assert len(model.recommend("u03")) == 6
    assert len(model.recommend("u03", exclude_same_creator=True)) == 6


class Beats:
    "Tempo, key and loudness of songs, given: two kinds."
    def vectors(self, ids):
        kind = np.arange(len(ids)) % 2
        return np.eye(2, 16, dtype=np.float32)[kind], np.zeros(len(ids), bool)


def test_the_playing_order_follows_tempo_and_the_list_does_not_change():
    tables = toy_tables()
    plain = HybridRecommender(**QUICK, n=8).fit(**tables, as_of=AS_OF)
    heard = HybridRecommender(**QUICK, n=8, flow_weight=1.0).fit(**tables, as_of=AS_OF, flow=Beats())
    users = plain.x.users.ids.tolist()
    a, b = plain.recommend(user_ids=users), heard.recommend(user_ids=users)
    assert a.drop(columns=Col.PLAY_ORDER).equals(b.drop(columns=Col.PLAY_ORDER))
    kind = dict(zip(heard.x.items.ids, np.arange(len(heard.x.items)) % 2, strict=True))
    for _, mine in b.groupby(Col.USER):
        order = mine.sort_values(Col.PLAY_ORDER)[Col.SONG].map(kind).to_numpy()
        assert (np.diff(order) != 0).sum() <= 1  # all songs of one kind, then all of the other


def test_the_report_shows_tempo_and_loudness_beside_the_right_song(tmp_path):
    songs = [f"s{i}" for i in range(6)]
    flow = FlowEncoder()
    store = EmbeddingStore.create(tmp_path / "e", encoder="flow", fingerprint=flow.fingerprint, modality="audio", dim=16, license="none")
    t = np.arange(160_000) / 16_000
    loud = [.5, .01, .5, .01, .5]
    clips = [(a * np.sin(2 * np.pi * 220 * t)).astype(np.float32) for a in loud]
    store.append(songs[:5], songs[:5], flow.encode_audio(clips))
    write_table(tmp_path / "frozen/interactions.parquet", pd.DataFrame({Col.USER: ["a"]}))
    write_table(tmp_path / "frozen/songs.parquet", pd.DataFrame({Col.SONG: songs, Col.TITLE: songs}))
    lists = pd.DataFrame({Col.USER: ["b", *["a"] * 6], Col.SONG: ["s0", *songs[::-1]], Col.RANK: [1, *range(1, 7)], Col.PLAY_ORDER: 1,
                          Col.CHANNEL: "content", Col.REASON_KIND: "seed", Col.REASON_ID: "s0"})
    write_table(tmp_path / "playlists.parquet", lists)
    write_json(tmp_path / "embeddings/embeddings.json", {"flow": {"pin": store.pin()}})
    shown = one_list(SimpleNamespace(folder=tmp_path, workspace=SimpleNamespace(embeddings=tmp_path / "e")))
    assert shown[Col.TITLE].tolist() == songs[::-1]
    assert np.isnan(shown["dBFS"].iloc[0])  # a song without a vector
    assert ((shown["dBFS"].iloc[1:] > -20).tolist()) == [a > .1 for a in loud[::-1]]


def test_a_week_of_a_log_without_impressions(micro):
    "Nothing was ever shown: the click model learns from plays, and the week has its lists."
    shutil.rmtree(micro / "impressions")
    run_week(micro, level="ERROR")
    week = Workspace(micro).published()
    assert not DinRanker.load(week / "models/din/final").arrays["clicks"]
    assert len(pd.read_parquet(week / "playlists.parquet"))


def test_music_flamingo_orders_a_week_or_leaves_it(tmp_path, monkeypatch):
    "A playing order changes and nothing else; without an answer all stays, and the model says so."
    tables = toy_tables()
    model = HybridRecommender(**QUICK, n=4, use_music_flamingo=True).fit(**tables, as_of=AS_OF)
    write_table(tmp_path / "frozen/interactions.parquet", tables["interactions"])
    this = SimpleNamespace(folder=tmp_path, workspace=Workspace(tmp_path), week="2026-W23")

    class Backwards:
        weights = "fake"

        def __init__(self, model_id, device):
            assert (model_id, device) == ("nvidia/music-flamingo-2601-hf", "cpu")

        def reply(self, questions, sounds=None, max_new_tokens=1, attempt=0):
            return [str(list(range(questions[0].count("\n") - 1, 0, -1)))]
    usual = model.recommend(user_ids=sorted(tables["interactions"]["user_id"].unique()))
    monkeypatch.setattr("sunorecsys.quality.flamingo.MusicFlamingo", Backwards)
    lists = week_lists(model, this, tables["songs"])
    assert "music_flamingo" not in model.absent and lists[usual.columns].drop(columns="play_order").equals(usual.drop(columns="play_order"))
    many = usual.groupby("user_id")["song_id"].transform("size")
    assert (lists["play_order"] == many + 1 - usual["play_order"]).all()
    monkeypatch.setattr(Backwards, "weights", "another")
    monkeypatch.setattr(Backwards, "reply", lambda self, questions, **_: ["I like them all."])
    assert week_lists(model, this, tables["songs"])["play_order"].equals(usual["play_order"])
    assert "lists keep the order of chaining" in model.absent["music_flamingo"] and "no list of numbers" in model.absent["music_flamingo"]


def test_exploring_places_are_drawn_alike_alone_and_in_a_crowd():
    "The propensity stands in the table, and a listener's draw does not depend on who else is asked about."
    model = HybridRecommender(**QUICK, n=6, cold_share=.5, cold_listeners=14, explore_share=.34).fit(**toy_tables(), as_of=AS_OF)
    users = model.x.users.ids.tolist()
    lists = model.recommend(user_ids=users)
    drawn = lists[lists["propensity"] < 1]
    assert len(drawn) and (drawn["propensity"] >= .1).all() and (drawn.groupby("user_id").size() <= 2).all()
    one = model.recommend(users[3])
    pd.testing.assert_frame_equal(one, lists[lists["user_id"] == users[3]].reset_index(drop=True))
    off = HybridRecommender(**QUICK, n=6, cold_share=.5, cold_listeners=14, explore_share=0).fit(**toy_tables(), as_of=AS_OF)
    assert (off.recommend(user_ids=users)["propensity"] == 1).all()
