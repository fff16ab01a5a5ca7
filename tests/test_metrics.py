"""Every metric against a slow, obvious version of itself, known values, and everything that must raise."""
import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from sunorecsys.evaluation import metrics as m
from sunorecsys.evaluation import predictions as pr

budget = settings(max_examples=150, deadline=None)

def naive(songs: list[int], relevant: set[int], k: int) -> dict[str, float]:
    "One listener, straight from the definitions; `songs` without the -1."
    top = songs[:k]
    found = [r for r, s in enumerate(top, 1) if s in relevant]
    best = min(len(relevant), k)
    return {
        "HitRate": float(len(found) > 0),
        "Precision": len(found) / k,
        "Recall": len(found) / len(relevant),
        "NDCG": sum(1 / math.log2(r + 1) for r in found) / sum(1 / math.log2(r + 1) for r in range(1, best + 1)),
        "MRR": 1 / found[0] if found else 0.0,
        "MAP": sum(sum(s in relevant for s in top[:r]) / r for r in found) / best,
    }

@st.composite
def cases(draw):
    "Lists of different lengths padded with -1, relevant sets (often empty), a cut-off that may exceed the list."
    n_items, n = draw(st.integers(1, 12)), draw(st.integers(0, 9))
    song = st.integers(0, n_items - 1)
    lists = draw(st.lists(st.lists(song, unique=True, max_size=n), max_size=6))
    relevant = [draw(st.sets(song)) for _ in lists]
    k = draw(st.integers(1, n + 4))
    rec = np.full((len(lists), n), -1, draw(st.sampled_from([np.int32, np.int64])))
    for row, songs in zip(rec, lists, strict=True):
        row[:len(songs)] = songs
    return rec, relevant, n_items, k, lists

def csr(relevant: list[set[int]], n_items: int) -> sp.csr_array:
    cols = np.array([c for s in relevant for c in sorted(s)], int)
    return sp.csr_array((np.ones(len(cols), bool), cols, np.cumsum([0, *map(len, relevant)])), shape=(len(relevant), n_items))

@budget
@given(cases())
def test_hits_are_membership(case):
    rec, relevant, n_items, _, _ = case
    expected = np.array([[s in r for s in row] for row, r in zip(rec.tolist(), relevant, strict=True)], bool).reshape(rec.shape)
    np.testing.assert_array_equal(m.hits(rec, csr(relevant, n_items)), expected)

@budget
@given(cases())
def test_every_metric_equals_the_naive_one(case):
    rec, relevant, n_items, k, lists = case
    got = m.evaluate(rec, csr(relevant, n_items), ks=(k,))
    kept = [u for u, r in enumerate(relevant) if r]
    assert got.values.index.tolist() == kept and got.n_without == len(relevant) - len(kept)
    for name in m.METRICS:
        np.testing.assert_allclose(got[name, k], [naive(lists[u], relevant[u], k)[name] for u in kept], atol=1e-12)
    assert ((got.values >= 0) & (got.values <= 1)).all(axis=None)

@budget
@given(cases())
def test_functions_have_no_value_where_nothing_is_relevant(case):
    rec, relevant, n_items, k, _ = case
    hit, n_relevant = m.hits(rec, csr(relevant, n_items)), np.array([len(r) for r in relevant], int)
    for f in m.METRICS.values():
        np.testing.assert_array_equal(np.isnan(f(hit, n_relevant, k)), n_relevant == 0)

@budget
@given(cases())
def test_k_is_really_k(case):
    "What stands behind place k changes nothing, and @k of the list is @k of the cut list."
    rec, relevant, n_items, k, _ = case
    rel = csr(relevant, n_items)
    pd.testing.assert_frame_equal(m.evaluate(rec, rel, ks=(k,)).values, m.evaluate(rec[:, :k], rel, ks=(k,)).values)

@budget
@given(cases())
def test_padding_is_a_miss(case):
    rec, relevant, n_items, k, _ = case
    rel = csr(relevant, n_items)
    longer = np.pad(rec, ((0, 0), (0, 5)), constant_values=-1)
    pd.testing.assert_frame_equal(m.evaluate(rec, rel, ks=(k,)).values, m.evaluate(longer, rel, ks=(k,)).values)

@budget
@given(cases())
def test_any_storage_of_the_same_relevant_songs(case):
    "Unsorted, stored twice, with stored zeros, as counts, another sparse format: one result, and the input is left alone."
    rec, relevant, n_items, k, _ = case
    expected = m.evaluate(rec, csr(relevant, n_items), ks=(k,)).values
    twice = [(u, c) for u, s in enumerate(relevant) for c in [*reversed(sorted(s)), *s]]
    nothing = [(u, c) for u, s in enumerate(relevant) for c in range(n_items) if c not in s]
    ij = np.array(twice + nothing, int).reshape(-1, 2)
    data = np.array([3] * len(twice) + [0] * len(nothing), np.int32)
    indptr = np.searchsorted(ij[np.argsort(ij[:, 0], kind="stable"), 0], np.arange(len(relevant) + 1))
    order = np.argsort(ij[:, 0], kind="stable")
    untidy = sp.csr_matrix((data[order], ij[order, 1], indptr), shape=(len(relevant), n_items))
    before = untidy.data.copy(), untidy.indices.copy()
    for rel in (untidy, untidy.astype(bool), untidy.tocsc()):
        pd.testing.assert_frame_equal(m.evaluate(rec, rel, ks=(k,)).values, expected)
    assert (untidy.data == before[0]).all() and (untidy.indices == before[1]).all()

# Known values: hits at ranks 2 and 4, three relevant songs.
HIT, N3 = np.array([[False, True, False, True, False]]), np.array([3])

@pytest.mark.parametrize("name, k, expected", [
    ("HitRate", 1, 0), ("HitRate", 2, 1), ("Precision", 5, .4), ("Precision", 10, .2), ("Recall", 5, 2 / 3), ("Recall", 3, 1 / 3),
    ("MRR", 5, .5), ("MRR", 1, 0), ("MAP", 5, 1 / 3), ("MAP", 2, .25), ("NDCG", 5, .4981887), ("NDCG", 2, .3868528), ("NDCG", 1, 0)])
def test_known_values(name, k, expected):
    assert m.METRICS[name](HIT, N3, k)[0] == pytest.approx(expected, abs=1e-6)

def test_average_precision_of_a_textbook_ranking():
    "Hits at ranks 1, 3, 6, 9 and 10, all five relevant songs: (1 + 2/3 + 3/6 + 4/9 + 5/10) / 5 = .62."
    hit = np.isin(np.arange(1, 11), [1, 3, 6, 9, 10])[None]
    assert m.average_precision(hit, np.array([5]), 10)[0] == pytest.approx((1 + 2 / 3 + 3 / 6 + 4 / 9 + 5 / 10) / 5)

def test_map_is_not_divided_by_hits():
    hit = np.zeros((1, 50), bool)
    hit[0, 0] = True
    assert m.average_precision(hit, np.array([100]), 50)[0] == 1 / 50
    assert m.average_precision(hit, np.array([4]), 50)[0] == 1 / 4

def test_at_20_is_not_at_50():
    hit = np.zeros((1, 50), bool)
    hit[0, 30] = True
    for name, f in m.METRICS.items():
        assert f(hit, np.array([1]), 20)[0] == 0, name
        assert f(hit, np.array([1]), 50)[0] > 0, name

def test_a_perfect_list_scores_exactly_one():
    hit = np.tile(np.arange(50) < 7, (4, 1))
    for name in ("HitRate", "Recall", "NDCG", "MRR", "MAP"):
        assert (m.METRICS[name](hit, np.full(4, 7), 50) == 1).all()

# Errors

def relevant(n: int, n_items: int = 5) -> sp.csr_array:
    return sp.csr_array(np.eye(n, n_items, dtype=bool))

@pytest.mark.parametrize("rec, words", [
    ([[0, 1], [3, 3]], "list 1 holds song 3 twice"), ([[0, 1, 0], [-1, -1, -1]], "list 0 holds song 0 twice"),
    ([[0, 1], [2, 5]], "list 1 holds code 5 at rank 2"), ([[-2, 0], [0, 1]], "list 0 holds code -2 at rank 1"),
    ([[0, 1], [-1, 2]], "list 1 has a song after -1"), ([[0., 1.], [1., 2.]], "float64"), ([0, 1], "shape \\(2,\\)"),
    ([[0, 1]], "1 lists")])
def test_bad_lists_raise(rec, words):
    with pytest.raises(ValueError, match=words):
        m.evaluate(np.array(rec), relevant(2))

@pytest.mark.parametrize("k", [0, -1, 2.0, True, "10", None])
def test_bad_k_raises(k):
    with pytest.raises(ValueError, match="positive integer"):
        m.evaluate(np.array([[0, 1]]), relevant(1), ks=(k,))

def test_no_k_raises():
    with pytest.raises(ValueError, match="no cut-off"):
        m.evaluate(np.array([[0, 1]]), relevant(1), ks=())

def test_duplicates_beyond_k_and_of_listeners_without_songs_raise_too():
    with pytest.raises(ValueError, match="twice"):
        m.evaluate(np.array([[0, 1, 2, 2]]), sp.csr_array((1, 5), dtype=bool), ks=(1,))

def test_int32_codes_of_many_listeners_and_songs_do_not_overflow():
    U, n_items = 3000, 2_000_000
    rec = np.tile(np.array([[n_items - 1, 0]], np.int32), (U, 1))
    rel = sp.csr_array((np.ones(U, bool), np.zeros(U, np.int32), np.arange(U + 1)), shape=(U, n_items))
    assert (m.hits(rec, rel) == [False, True]).all()

# Intervals

finite = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)

@budget
@given(finite, st.sampled_from([.5, .9, .95, .99]))
def test_student_interval_is_scipys(values, confidence):
    got = m.mean_interval(values, confidence)
    assert got.n == len(values) and got.mean == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-9:
        low, high = scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), scipy.stats.sem(values))
        assert (got.low, got.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))

def test_degrees_of_freedom():
    "Two values 0 and 1: one degree of freedom, t = 12.7062, half width t * sd / sqrt(2) = t / 2."
    assert m.mean_interval([0, 1]).high - .5 == pytest.approx(12.7062 / 2, abs=1e-4)

def test_small_samples():
    assert m.mean_interval([]).n == 0 and math.isnan(m.mean_interval([]).mean)
    for f in (m.mean_interval, m.bootstrap_interval):
        one = f([.25])
        assert one.mean == .25 and math.isnan(one.low) and math.isnan(one.high)

@pytest.mark.parametrize("f", [m.mean_interval, m.bootstrap_interval])
@pytest.mark.parametrize("values, confidence", [([1, math.nan], .95), ([1, math.inf], .95), ([[1, 2]], .95), ([1, 2], 0), ([1, 2], 95)])
def test_bad_samples_raise(f, values, confidence):
    with pytest.raises(ValueError):
        f(values, confidence)

def test_bootstrap_is_seeded_and_agrees_with_drawing_listeners():
    x = np.random.default_rng(0).beta(1, 3, 200).round(2)
    got = m.bootstrap_interval(x, n_resamples=4000, random_state=7)
    assert got == m.bootstrap_interval(x, n_resamples=4000, random_state=7) != m.bootstrap_interval(x, n_resamples=4000, random_state=8)
    plain = np.quantile(np.random.default_rng(1).choice(x, (4000, 200)).mean(axis=1), [.025, .975])
    np.testing.assert_allclose((got.low, got.high), plain, atol=.004)

def test_interval_covers_at_its_level():
    rng = np.random.default_rng(5)
    covered = np.mean([i.low <= 0 <= i.high for i in map(m.mean_interval, rng.standard_normal((2000, 4)))])
    assert abs(covered - .95) < .02

def test_paired_difference():
    a, b = np.array([.5, .2, .9, .4]), np.array([.4, .1, .7, .4])
    got, ref = m.paired_difference(a, b), scipy.stats.ttest_rel(a, b).confidence_interval()
    assert (got.mean, got.low, got.high) == pytest.approx((.1, ref.low, ref.high))
    assert m.paired_difference(a, a)[:3] == (0, 0, 0)
    with pytest.raises(ValueError, match="not the same"):
        m.paired_difference(a, b[:3])
    with pytest.raises(ValueError, match="not the same"):
        m.paired_difference(pd.Series(a), pd.Series(b, index=[1, 0, 2, 3]))

# Tables

def test_summarise():
    rec, rel = np.array([[0, 1], [1, 0], [2, 3]]), sp.csr_array(np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5], bool))
    per = m.evaluate(rec, rel, ks=(1, 2))
    t = m.summarise(per, model="a", split="validation")
    assert t.columns.tolist() == ["model", "split", "metric", "k", "value", "low", "high", "n_listeners", "n_without"]
    assert len(t) == 12 and (t["n_listeners"] == 2).all() and (t["n_without"] == 1).all() and (t["model"] == "a").all()
    value = t.set_index(["metric", "k"])["value"]
    assert (value["MRR", 1], value["MRR", 2], value["HitRate", 1], value["Precision", 2]) == (.5, .75, .5, .5)
    assert per["MRR", 2].tolist() == [1, .5] and "2 listeners (1 without" in repr(per)

@pytest.mark.parametrize("n", [0, 3])
def test_nobody_has_a_relevant_song(n):
    t = m.summarise(m.evaluate(np.zeros((n, 2), int) + [0, 1], sp.csr_array((n, 4), dtype=bool), ks=(1,)))
    assert len(t) == 6 and t["value"].isna().all() and (t["n_listeners"] == 0).all() and (t["n_without"] == n).all()

@budget
@given(cases())
def test_coverage_and_gini_equal_the_naive_ones(case):
    rec, _, n_items, _, lists = case
    count = [sum(s in row for row in lists) for s in range(n_items)]
    assert m.coverage(rec, n_items) == pytest.approx(sum(c > 0 for c in count) / n_items)
    if not sum(count):
        assert math.isnan(m.gini(rec, n_items))
    else:
        pairs = sum(abs(x - y) for x in count for y in count)
        assert m.gini(rec, n_items) == pytest.approx(pairs / (2 * n_items * sum(count)))

def test_coverage_refuses_unknown_codes():
    with pytest.raises(ValueError, match="codes run from 0 to 3"):
        m.coverage(np.array([[4]]), 4)
    assert math.isnan(m.coverage(np.empty((0, 3), int), 0)) and math.isnan(m.gini(np.empty((0, 3), int), 0))

@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), max_size=60))
@budget
def test_auc_and_gauc_equal_scikit_learn(rows):
    p, y, user = (np.array([r[i] for r in rows], float if i == 0 else int) for i in range(3))
    if 0 < y.sum() < len(y):
        assert pr.auc(p / 4, y) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    else:
        assert math.isnan(pr.auc(p / 4, y))
    able = [u for u in np.unique(user) if 0 < y[user == u].sum() < (user == u).sum()]
    each = [(roc_auc_score(y[user == u], p[user == u]), (user == u).sum()) for u in able]
    want = np.average([a for a, _ in each], weights=[n for _, n in each]) if each else np.nan
    np.testing.assert_allclose(pr.gauc(p / 4, y, user), want, atol=1e-12)

@pytest.mark.parametrize("seed", range(5))
def test_losses_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    p = rng.random(500)
    y = (rng.random(500) < p**2).astype(int)
    assert pr.log_loss(p, y) == pytest.approx(sk.log_loss(y, p))
    said, at = (p >= .4).astype(int), pr.at_threshold(p, y, .4)
    assert at == pytest.approx({"accuracy": sk.accuracy_score(y, said), "precision": sk.precision_score(y, said),
                                "recall": sk.recall_score(y, said), "f1": sk.f1_score(y, said)})
    bins = [np.abs(p[b].mean() - y[b].mean()) * b.mean() for b in (np.floor(p * 15) == i for i in range(15)) if b.any()]
    assert pr.ece(p, y) == pytest.approx(sum(bins))
    clicked, predicted = calibration_curve(y, p, n_bins=15)
    table = pr.reliability(p, y)
    np.testing.assert_allclose(table[["predicted", "clicked"]], np.c_[predicted, clicked], atol=1e-12)

@pytest.mark.parametrize("k", [1, 5, 12])
def test_ndcg_and_map_equal_scikit_learn(k):
    rng = np.random.default_rng(k)
    scores, rel = rng.random((40, 12)), rng.random((40, 12)) < .3
    rel[~rel.any(axis=1), 0] = True
    got = m.evaluate(np.argsort(-scores, axis=1), sp.csr_array(rel), ks=(k,))
    for u in range(40):
        assert got["NDCG", k][u] == pytest.approx(sk.ndcg_score(rel[u:u + 1], scores[u:u + 1], k=k))
    if k == 12:
        np.testing.assert_allclose(got["MAP", k], [sk.average_precision_score(r, s) for r, s in zip(rel, scores, strict=True)])

def test_pooled_bootstrap_is_the_bootstrap_of_each_data_set():
    rng = np.random.default_rng(0)
    a, b = rng.normal(.05, 1, 300), rng.normal(.3, .5, 50)
    d, low, high, p = m.pooled_bootstrap([(a, np.zeros(300)), (b, np.zeros(50))])
    assert d == pytest.approx(np.r_[a, b].mean())
    se = math.sqrt(300 * a.var() + 50 * b.var()) / 350
    assert (high - low) / 2 == pytest.approx(1.96 * se, rel=.05) and 0 <= p <= 1
    assert m.paired_bootstrap(a, np.zeros(300)) == m.pooled_bootstrap([(a, np.zeros(300))])
