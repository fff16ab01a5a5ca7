"""Both collaborative channels against naive dense references, and at the edges: nothing, one of everything, ties, a flood."""
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from threadpoolctl import threadpool_limits

from sunorecsys.codes import pad_history
from sunorecsys.recommenders.base import FORMAT, MissingInput, Random
from sunorecsys.recommenders.hybrid import HybridRecommender
from sunorecsys.recommenders.interests import Interests
from sunorecsys.recommenders.item_cf import ItemCF, neighbours, shrunk_columns, strongest_seed, voters, votes
from sunorecsys.recommenders.quality_filter import QualityFilter
from sunorecsys.recommenders.two_tower import TwoTower
from sunorecsys.recommenders.user_based import UserBased, als, best_products, confidence, fit_factors, fold_in, short_list, unit
from sunorecsys.schema import Col, validate
from sunorecsys.testing import AS_OF, fingerprint, toy_tables
from sunorecsys.workspace import link_tree, read_json, write_json

MODELS = [ItemCF, UserBased]
ALL = [*MODELS, TwoTower, Interests]

def random_strengths(n_users: int, n_items: int, density: float, seed: int) -> sparse.csr_matrix:
    m = sparse.random(n_users, n_items, density, format="csr", random_state=seed, dtype=np.float32)
    m.data = np.log1p(np.ceil(m.data * 5))  # a handful of levels, so that there are ties
    return m

def table(plays: list[tuple[str, str]] | pd.DataFrame) -> pd.DataFrame:
    frame = plays if isinstance(plays, pd.DataFrame) else pd.DataFrame(plays, columns=[Col.USER, Col.SONG], dtype="str")
    frame = frame.assign(**{Col.TIME: AS_OF - pd.to_timedelta(np.arange(len(frame)) % 10_000 + 1, "min")})
    return validate(frame, "interactions")[0]

def catalogue(n: int) -> pd.DataFrame:
    return validate(pd.DataFrame({Col.SONG: [f"s{i}" for i in range(n)], Col.TITLE: [f"Song {i}" for i in range(n)]}), "songs")[0]

def small(cls: type, **kw):
    return cls(**{UserBased: {"n_factors": 6, "n_iterations": 6}, TwoTower: {"dim": 8, "epochs": 2},
                  Interests: {"n_interests": 6, "restarts": 2, "rounds": 5}}.get(cls, {}) | kw)

def dense_similarity(liked: sparse.csr_matrix, shrinkage: float) -> np.ndarray:
    x = liked.toarray().astype(np.float64)
    norm = (x**2).sum(axis=0) + shrinkage
    with np.errstate(invalid="ignore"):
        sim = np.nan_to_num(x.T @ x / np.sqrt(np.outer(norm, norm)))
    np.fill_diagonal(sim, 0)
    return sim

# --- item to item

@pytest.mark.parametrize("shrinkage", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("k", [1, 7, 60, 500])
def test_neighbours_are_the_k_largest_shrunk_cosines(k, shrinkage):
    for seed in range(4):
        liked = random_strengths(40, 60, .1, seed)
        sim = dense_similarity(liked, shrinkage)
        near = neighbours(liked, k, shrinkage).toarray()
        kept = near > 0
        np.testing.assert_allclose(near[kept], sim[kept], rtol=1e-5)  # what is kept is right, in the right place
        want = -np.sort(-sim, axis=1)[:, :k]
        np.testing.assert_allclose(-np.sort(-near, axis=1)[:, :k], want, atol=1e-6)  # and nothing better was dropped

def test_shrunk_columns_keep_their_places():
    liked = random_strengths(30, 20, .2, 0)
    c = shrunk_columns(liked, 10)
    assert (c != 0).nnz == liked.nnz and c.dtype == np.float64
    np.testing.assert_array_equal(liked.toarray(), random_strengths(30, 20, .2, 0).toarray())  # the input is not changed

def test_votes_match_the_dense_product():
    liked = random_strengths(50, 80, .1, 1)
    near, seeds = neighbours(liked, 10), random_strengths(33, 80, .1, 2)
    exclude = random_strengths(33, 80, .3, 3) != 0
    score = seeds.toarray() @ near.toarray()
    score[exclude.toarray() | (score <= 0)] = -np.inf
    items, got = votes(seeds, voters(near), exclude, 12)
    want = -np.sort(-score, axis=1)[:, :12]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    u, at = np.nonzero(items >= 0)
    np.testing.assert_allclose(score[u, items[u, at]], got[u, at], rtol=1e-5)
    assert not exclude[u, items[u, at]].any()

def test_the_strongest_seed_is_the_largest_part_of_the_score():
    liked = random_strengths(50, 80, .1, 1)
    near, mine = neighbours(liked, 10), random_strengths(33, 80, .1, 2)
    u, i = mine.nonzero()
    h = pad_history(u, i, np.asarray(mine[u, i]).ravel(), 33)
    items, score = votes(mine, voters(near), sparse.csr_matrix((33, 80), dtype=bool), 9)
    seed, share = strongest_seed(h, near, items)
    part = mine.toarray()[:, :, None] * near.toarray()[None]
    for u, at in zip(*np.nonzero(items >= 0), strict=True):
        mine_parts = part[u, :, items[u, at]]
        assert np.isclose(mine_parts[seed[u, at]], mine_parts.max(), rtol=1e-5)
        assert np.isclose(share[u, at], mine_parts.max() / score[u, at], rtol=1e-4)
    assert ((seed >= 0) == (items >= 0)).all() and (share >= 0).all() and (share <= 1 + 1e-6).all()

# --- factors

@pytest.mark.parametrize(("f", "regularization", "alpha"), [(3, .1, 1.0), (16, 1.0, 2.0), (64, 5.0, 40.0)])
def test_fold_in_is_the_closed_form(f, regularization, alpha):
    model = als(f, regularization)
    fit_factors(model, confidence(random_strengths(60, 90, .1, 0), alpha), 3, 0)
    c = confidence(random_strengths(21, 90, .1, 5), alpha)
    c = sparse.vstack([c, sparse.csr_matrix((2, 90), dtype=np.float32)], format="csr")  # two without a play
    Y, dense = model.item_factors.astype(np.float64), c.toarray().astype(np.float64)
    want = [np.linalg.solve(Y.T @ Y + (Y.T * np.where(r > 0, r - 1, 0)) @ Y + regularization * np.eye(f), Y.T @ r) for r in dense]
    got = fold_in(model, c)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4)
    assert not got[-2:].any()
    np.testing.assert_array_equal(fold_in(model, c[4:5])[0], got[4])  # whoever else is folded in

def test_the_fit_is_implicits_own():
    from implicit.cpu.als import AlternatingLeastSquares
    c = confidence(random_strengths(60, 90, .1, 0), 2.0)
    ours = als(8, 1.0)
    fit_factors(ours, c, 5, 3)
    with threadpool_limits(1, "blas"):
        direct = AlternatingLeastSquares(factors=8, regularization=1.0, alpha=1.0, iterations=5, random_state=3)
        direct.fit(c, show_progress=False)
    np.testing.assert_array_equal(ours.user_factors, direct.user_factors)
    np.testing.assert_array_equal(ours.item_factors, direct.item_factors)

@pytest.mark.parametrize(("n", "f", "k"), [(1, 1, 1), (5, 2, 9), (3000, 16, 30), (700, 64, 200), (700, 8, 700)])
def test_best_products_against_a_full_sort(n, f, k):
    rng = np.random.default_rng(n + f + k)
    vectors, queries = rng.normal(size=(n, f)).astype(np.float32), rng.normal(size=(37, f)).astype(np.float32)
    vectors[n // 2:] = vectors[:n - n // 2]  # every song has a double: ties everywhere
    exclude = sparse.random(37, n, .4, format="csr", random_state=1).astype(bool)
    dense = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    dense[exclude.toarray() | (dense <= 0)] = -np.inf
    items, scores = best_products(queries, vectors, k, exclude)
    width = min(k, n)
    np.testing.assert_allclose(scores[:, :width], -np.sort(-dense, axis=1)[:, :width], rtol=1e-4, atol=1e-5)
    assert (items[:, width:] == -1).all() and ((items >= 0) == np.isfinite(scores)).all()
    u, at = np.nonzero(items[:, 1:] >= 0)
    tied = scores[u, at] == scores[u, at + 1]
    assert (items[u, at] < items[u, at + 1])[tied].all()  # of equal scores the lower code first
    for rows in (slice(0, 1), slice(5, 7), slice(3, 30)):  # bit for bit the same in any company
        some = best_products(queries[rows], vectors, k, exclude[rows])
        np.testing.assert_array_equal(some[0], items[rows])
        np.testing.assert_array_equal(some[1], scores[rows])

def test_best_products_with_nothing_to_find():
    q = np.ones((3, 4), np.float32)
    assert (best_products(q, np.zeros((0, 4), np.float32), 5)[0] == -1).all()
    assert (best_products(q, np.zeros((9, 4), np.float32), 5)[0] == -1).all()
    assert (best_products(0 * q, np.ones((9, 4), np.float32), 5)[0] == -1).all()
    assert (best_products(q, np.ones((9, 4), np.float32), 5, sparse.csr_matrix(np.ones((3, 9), bool)))[0] == -1).all()
    assert best_products(q[:0], np.ones((9, 4), np.float32), 5)[0].shape == (0, 5)

def test_short_lists_are_short_and_complete():
    p = np.random.default_rng(0).normal(size=(20, 5000)).astype(np.float32)
    near = short_list(p, 50, np.zeros(20, np.float32))
    assert near.shape[1] < 100
    for want, got in zip(np.argsort(-p, axis=1)[:, :50], near, strict=True):
        assert set(want) <= set(got)

def test_unit_keeps_zero_rows():
    v = unit(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(v, [[.6, .8], [0, 0]], rtol=1e-6)

# --- both, at the edges

@pytest.mark.parametrize("cls", ALL)
def test_one_listener(cls):
    plays = table([("ana", "s0"), ("ana", "s1")])
    model = small(cls).fit(interactions=plays, songs=catalogue(4), as_of=AS_OF)
    got = model.recommend("ana", n=5)
    assert got[Col.SONG].tolist() == ["s2", "s3"] and set(got[Col.CHANNEL]) == {"popularity"}  # nobody to learn from
    assert set(model.similar(["s0"], 3)[Col.SONG]) == {"s1"}

@pytest.mark.parametrize("cls", MODELS)
def test_one_song(cls):
    model = small(cls).fit(interactions=table([(f"u{i}", "s0") for i in range(5)]), songs=catalogue(1), as_of=AS_OF)
    assert len(model.recommend(user_ids=["u0", "u3"], n=5)) == 0
    assert model.recommend("zoe", n=5)[Col.SONG].tolist() == ["s0"]
    assert len(model.similar(["s0"], 5)) == 0

@pytest.mark.parametrize("cls", MODELS)
def test_listeners_with_one_play_each(cls):
    model = small(cls).fit(interactions=table([(f"u{i}", f"s{i % 3}") for i in range(12)]), songs=catalogue(5), as_of=AS_OF)
    got = model.recommend(user_ids=[f"u{i}" for i in range(12)], n=4)
    assert (got.groupby(Col.USER).size() == 4).all()
    assert np.isfinite(got[Col.SCORE]).all()
    if cls is ItemCF:
        assert model.near.nnz == 0  # no two songs share a listener

@pytest.mark.parametrize("cls", ALL)
def test_all_strengths_equal(cls):
    plays = table([(f"u{u}", f"s{s}") for u in range(10) for s in range(8) if (u + s) % 2])
    model = small(cls).fit(interactions=plays, songs=catalogue(10), as_of=AS_OF)
    got = model.recommend(user_ids=[f"u{u}" for u in range(10)], n=6)
    assert (got.groupby(Col.USER).size() == 6).all() and np.isfinite(got[Col.SCORE]).all()
    again = small(cls).fit(interactions=plays, songs=catalogue(10), as_of=AS_OF).recommend(user_ids=[f"u{u}" for u in range(10)], n=6)
    pd.testing.assert_frame_equal(got, again)

def test_a_network_needs_somebody_with_two_songs():
    for plays in ([], [("u0", "s0")], [(f"u{i}", f"s{i % 3}") for i in range(12)]):
        with pytest.raises(MissingInput, match="listeners who like two songs or more"):
            small(TwoTower).fit(interactions=table(plays), songs=catalogue(5), as_of=AS_OF)

@pytest.mark.parametrize("cls", MODELS)
def test_empty_log(cls, tmp_path):
    model = small(cls).fit(interactions=table([]), songs=catalogue(3), as_of=AS_OF)
    got = model.recommend("zoe", n=2)
    assert len(got) == 2 and set(got[Col.REASON_KIND]) == {"cold_start"}
    assert len(model.recommend(song_ids=["s0"], n=5)) == 2
    assert len(model.similar(["s0"], 5)) == 0
    assert model.candidates(np.array([], np.int32), 5).item_idx.shape == (0, 5)
    model.save(tmp_path / "m")
    pd.testing.assert_frame_equal(cls.load(tmp_path / "m").recommend("zoe", n=2), got)

@pytest.mark.parametrize("cls", ALL)
def test_songs_without_plays_are_nobodys_candidates(cls):
    liked = random_strengths(30, 20, .3, 0)
    u, i = liked.nonzero()
    plays = table(pd.DataFrame({Col.USER: [f"u{x}" for x in u], Col.SONG: [f"s{x}" for x in i]}))
    model = small(cls).fit(interactions=plays, songs=catalogue(40), as_of=AS_OF)
    c = model.candidates(np.arange(len(model.x.users)), 40)
    played = np.flatnonzero(model.x.popularity > 0)
    assert set(c.item_idx[c.item_idx >= 0]) <= set(played)
    assert len(model.similar(["s39"], 5)) == 0

@pytest.mark.parametrize("cls", ALL)
def test_a_listener_with_100k_plays(cls):
    rng = np.random.default_rng(0)
    n = 2000
    flood = pd.DataFrame({Col.USER: "robot", Col.SONG: [f"s{i}" for i in rng.integers(0, n - 1, 100_000)]})
    others = pd.DataFrame({Col.USER: [f"u{i}" for i in rng.integers(0, 200, 4000)],
                           Col.SONG: [f"s{i}" for i in (rng.pareto(1, 4000) * 20).astype(int) % n]})
    model = small(cls).fit(interactions=table(pd.concat([flood, others], ignore_index=True)), songs=catalogue(n), as_of=AS_OF)
    c = model.candidates(model.x.users.encode(["robot", "u1", "u2"]), 30)
    seen = model.x.seen.toarray()
    for u, items in zip(c.user_idx, c.item_idx, strict=True):
        assert not seen[u, items[items >= 0]].any()
    assert (c.item_idx[1:] >= 0).all()
    assert np.isfinite(c.scores[1:]).all()

@pytest.mark.parametrize("cls", ALL)
def test_any_company_any_order(cls):
    tables = toy_tables(n_users=300, n_songs=120, n_plays=6000)
    model = small(cls).fit(**tables, as_of=AS_OF)
    users = np.arange(len(model.x.users))
    all_, rng = model.candidates(users, 20), np.random.default_rng(0)
    for size in (1, 2, 17, 150):
        some = rng.choice(users, size, replace=False)
        got = model.candidates(some, 20)
        np.testing.assert_array_equal(got.item_idx, all_.item_idx[some])
        np.testing.assert_array_equal(got.scores, all_.scores[some])

@pytest.mark.parametrize("cls", ALL)
def test_saved_and_loaded_is_the_same_to_the_bit(cls, tmp_path):
    model = small(cls).fit(**toy_tables(), as_of=AS_OF)
    model.save(tmp_path / "m")
    again = cls.load(tmp_path / "m")
    assert again.params() == model.params()
    users = model.x.users.ids.tolist()
    pd.testing.assert_frame_equal(again.recommend(user_ids=users), model.recommend(user_ids=users), check_exact=True)
    seeds = model.x.items.ids[:3].tolist()
    pd.testing.assert_frame_equal(again.recommend(song_ids=seeds), model.recommend(song_ids=seeds), check_exact=True)
    pd.testing.assert_frame_equal(again.similar(seeds), model.similar(seeds), check_exact=True)

def test_fresh_history_folds_a_known_listener_in():
    tables = toy_tables()
    model = small(UserBased).fit(**tables, as_of=AS_OF)
    parity = int(model.x.items.ids[0][1:]) % 2
    songs = [s for s in model.x.items.ids if int(s[1:]) % 2 == parity][:4]
    plays = pd.DataFrame({Col.SONG: songs})
    known = model.recommend("u01", n=3, history=plays.assign(**{Col.USER: "u01"}), exclude_seen=False)
    stranger = model.recommend("zoe", n=3, history=plays.assign(**{Col.USER: "zoe"}), exclude_seen=False)
    assert known[Col.SONG].tolist() == stranger[Col.SONG].tolist()  # the given plays replace what was stored
    np.testing.assert_array_equal(known[Col.SCORE], stranger[Col.SCORE])
    same = model.candidates(np.array([1]), 5, history=model.x.history.rows(np.array([1])))
    np.testing.assert_array_equal(same.scores, model.candidates(np.array([1]), 5).scores)  # the stored ones change nothing

def test_a_reason_shows_what_somebody_like_you_played_last_and_names_nobody():
    tables = toy_tables(n_users=60, n_songs=60, n_plays=2000)
    model = small(UserBased).fit(**tables, as_of=AS_OF)
    got = model.recommend(user_ids=model.x.users.ids.tolist(), n=10)
    got = got[got[Col.CHANNEL] == "user_based"]
    assert set(got[Col.REASON_KIND]) <= {"listener", "factors"} and (got[Col.REASON_KIND] == "listener").mean() > .5
    why = got[got[Col.REASON_KIND] == "listener"]
    assert not set(why[Col.REASON_ID]) & set(model.x.users.ids) and why[Col.REASON_WEIGHT].between(0, 1 + 1e-6).all()
    liked, last = model.x.liked.toarray() > 0, model.x.history.item_idx[:, -2:]
    for user, mine in why.groupby(Col.USER):
        like = model.similar_users(user)
        assert user not in set(like[Col.USER])
        them = model.x.users.encode(like[Col.USER])
        for song, shown, weight in zip(*model.x.items.encode(mine[[Col.SONG, Col.REASON_ID]].to_numpy().T.ravel()).reshape(2, -1),
                                       mine[Col.REASON_WEIGHT], strict=True):
            true = liked[them, song] & (last[them] == shown).any(axis=1) & np.isclose(like[Col.SCORE], weight, rtol=1e-5)
            assert shown != song and true.any()
    rest = got[got[Col.REASON_KIND] == "factors"]
    assert rest[Col.REASON_ID].isna().all() and (rest[Col.REASON_WEIGHT] == 0).all()

@pytest.mark.parametrize(("cls", "settings"), [
    (ItemCF, {"top_k_per_seed": -1}), (ItemCF, {"top_k_per_seed": 0}), (ItemCF, {"top_k_per_seed": 2.5}), (ItemCF, {"shrinkage": -1}),
    (ItemCF, {"shrinkage": float("nan")}), (ItemCF, {"random_state": -1}), (ItemCF, {"history": {"last_n": 0}}),
    (UserBased, {"n_factors": 0}), (UserBased, {"n_factors": "many"}), (UserBased, {"regularization": 0}),
    (UserBased, {"alpha": float("inf")}), (UserBased, {"n_iterations": -3}), (QualityFilter, {"min_plays": -1}),
    (HybridRecommender, {"item_cf": {"top_k_per_seed": -1}}),
    (HybridRecommender, {"user_based": {"n_factor": 8}}), (HybridRecommender, {"n_recall": 0}), (Random, {"random_state": -1})])
def test_a_constructor_refuses_what_a_configuration_may_not_say(cls, settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=next(iter(value)) if isinstance(value, dict) else name):
        cls(**settings)

# --- saved models

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A folder with one saved model of every class."
    tables, folder = toy_tables(), tmp_path_factory.mktemp("saved")
    small = {"user_based": {"n_factors": 4, "n_iterations": 2}, "two_tower": {"dim": 8, "epochs": 2},
             "interests": {"n_interests": 6, "restarts": 1, "rounds": 5}}
    hybrid = HybridRecommender(**small, n_recall=20).fit(**tables, as_of=AS_OF)
    hybrid.save(folder / "HybridRecommender")
    hybrid.quality.save(folder / "QualityFilter")
    for m in hybrid.channels.values():
        m.save(folder / type(m).__name__)
    return folder

CLASSES = [ItemCF, UserBased, TwoTower, QualityFilter, HybridRecommender]

@pytest.mark.parametrize("found", [None, 1, "2", 99])
@pytest.mark.parametrize("cls", CLASSES)
def test_another_or_no_format_is_one_clear_sentence(cls, found, saved, tmp_path):
    folder = shutil.copytree(saved / cls.__name__, tmp_path / "m")
    m = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", {k: v for k, v in (m | {"format": found}).items() if v is not None and k != "files"})
    with pytest.raises(ValueError, match="format") as e:
        cls.load(folder)
    said = str(e.value)
    assert str(folder) in said and f"format {found}" in said and f"reads format {FORMAT}" in said and "sunorecsys weekly" in said

@pytest.mark.parametrize("cls", CLASSES)
def test_every_file_of_a_saved_model_is_sealed(cls, saved, tmp_path):
    names = [p.relative_to(saved / cls.__name__) for p in (saved / cls.__name__).rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert names
    for i, name in enumerate(names):
        folder = shutil.copytree(saved / cls.__name__, tmp_path / str(i))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name.name} is not what was saved"):
            cls.load(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name.name} is not what was saved"):
            cls.load(folder)
    assert set(read_json(saved / cls.__name__ / "manifest.json")["versions"]) >= {"sunorecsys", "numpy", "implicit"}

def test_parts_of_two_hybrids_do_not_mix(saved, tmp_path):
    folder, other = (shutil.copytree(saved / "HybridRecommender", tmp_path / x) for x in "ab")
    ItemCF(top_k_per_seed=1).fit(**toy_tables(), as_of=AS_OF).save(other / "channels/item_cf")
    shutil.rmtree(folder / "channels/item_cf")
    shutil.move(other / "channels/item_cf", folder / "channels/item_cf")
    with pytest.raises(ValueError, match="channels/item_cf/manifest.json is not what was saved"):
        HybridRecommender.load(folder)

@pytest.mark.parametrize("cls", CLASSES)
def test_saving_again_does_not_write_into_linked_files(cls, saved, tmp_path):
    link_tree(saved / cls.__name__, tmp_path / "linked")
    model = cls.load(saved / cls.__name__)
    before = fingerprint(tmp_path / "linked")
    cls(**({"n_factors": 4} if cls is UserBased else {})).fit(**toy_tables(seed=1), as_of=AS_OF).save(saved / cls.__name__)
    assert fingerprint(tmp_path / "linked") == before
    cls.load(tmp_path / "linked")
    model.save(saved / cls.__name__)  # as it was, for the other tests

@pytest.mark.parametrize("more", [{"rank": 1}, {"rank": 4096}, {"points": 1}, {"spread": 0.0}, {"spread": 1.0}, {"components": 1},
                                  {"n_interests": 1, "points": 1, "restarts": 1}])
def test_interests_at_the_ends_of_their_settings(more):
    tables = toy_tables()
    model = Interests(**{"n_interests": 6, "restarts": 2, "rounds": 5, "points": 30} | more).fit(**tables, as_of=AS_OF)
    known = model.recommend(user_ids=["u00", "u01"], n=5)
    assert len(known) == 10 and np.isfinite(known[Col.SCORE]).all()
    assert len(model.recommend(song_ids=["s00", "s01"], n=3)) == 3 and len(model.similar(["s00"], 3)) == 3
