"""`evaluation.accuracy` and the blend at the edges: hardly any data, ties, ids of the test part only; and on real data."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sunorecsys.codes import Candidates
from sunorecsys.data.sources import SourceError
from sunorecsys.data.splits import TEST, VALIDATION
from sunorecsys.evaluation import accuracy as acc
from sunorecsys.evaluation.datasets import pose, read_data, rounds_of
from sunorecsys.recommenders.blending import configured, learn_blend

REAL = Path(os.environ.get("SUNORECSYS_REAL_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting per channel, one round: the tests are about edges."""
    factors = [{"n_factors": 8}]
    monkeypatch.setattr(acc, "GRID", {"user_based": factors, "content_factors": factors, "two_tower": [{"epochs": 1}],
                                      "interests": [{"restarts": 1, "rounds": 5}]})
    monkeypatch.setattr(acc, "rounds_of", lambda data: rounds_of(data, at_most=1))


def folder_of(tmp_path: Path, lines: list[str], attributes: dict | None = None) -> Path:
    (tmp_path / "toy.txt").write_text("\n".join(lines))
    if attributes is not None:
        (tmp_path / "toy_item2attributes.json").write_text(json.dumps(attributes))
    return tmp_path


@pytest.mark.parametrize(("lines", "listeners"), [
    (["u1 a b c d e"], 1),
    ([f"u{i} a b c" for i in range(5)], 5),
    ([*[f"u{i} a b c d" for i in range(5)], "u9 a"], 5),
    ([f"u{i} a b c d only{i}" for i in range(6)], 6),
])
def test_hardly_any_data(no_search: None, tmp_path: Path, lines: list[str], listeners: int) -> None:
    """One listener, equal listeners, listeners with one play, songs that only the test part has: figures, and nothing invented."""
    done = acc.accuracy(read_data(folder_of(tmp_path, lines)), test=True)
    for part in ("validation", "test"):
        t = done[part].table
        assert t["value"].between(0, 1).all() and (t["n_listeners"] == listeners).all()
    assert done["validation"].chosen["weights"].keys() == {"blend"}, "a channel without its inputs took part"


def test_nobody_has_anything_to_find(no_search: None, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nobody has a song in the validation part"):
        acc.accuracy(read_data(folder_of(tmp_path, ["u1 a b", "u2 b a"])))


@pytest.mark.parametrize(("attributes", "says"), [("[1, 2]", "toy_item2attributes.json"), ("{", "toy_item2attributes.json")])
def test_bad_attributes(no_search: None, tmp_path: Path, attributes: str, says: str) -> None:
    folder = folder_of(tmp_path, ["u1 a b c d"])
    (folder / "toy_item2attributes.json").write_text(attributes)
    with pytest.raises(SourceError, match=says):
        read_data(folder)


def test_the_test_part_teaches_nothing(no_search: None, tmp_path: Path) -> None:
    """Other test songs: the same choices, the same blend, the same figures on the validation part."""
    rng = np.random.default_rng(0)
    one, other = tmp_path / "one", tmp_path / "other"
    lines = [" ".join([f"u{u}", *(f"s{i}" for i in rng.permutation(30)[:8])]) for u in range(80)]
    for folder, last in ((one, "x"), (other, "y")):
        folder.mkdir()
        folder_of(folder, [f"{line} {last}{u % 3}" for u, line in enumerate(lines)])
    a, b = (acc.accuracy(read_data(f))["validation"] for f in (one, other))
    assert a.chosen["weights"] == b.chosen["weights"]
    pd.testing.assert_frame_equal(a.table, b.table)


def test_parts_do_not_overlap(tmp_path: Path) -> None:
    data = read_data(folder_of(tmp_path, [f"u{u} " + " ".join(f"s{(u * 3 + j) % 20}" for j in range(7)) for u in range(30)]))
    known, asked_now = pose(data, VALIDATION)
    assert not known.seen[asked_now.who].multiply(asked_now.truth).nnz
    later, asked_later = pose(data, TEST)
    assert not later.seen[asked_later.who].multiply(asked_later.truth).nnz and later.seen.nnz == known.seen.nnz + 30


def test_equal_scores_and_unfounded_candidates_teach_nothing_wrong() -> None:
    """All scores equal, a channel that brings nothing, a popularity of zero: finite weights, the order of the fallback kept."""
    n = 80
    items = np.tile(np.arange(6, dtype=np.int32), (n, 1))
    scores = np.ones((n, 6, 2), np.float32)
    scores[..., 1] = np.nan
    truth = sparse.csr_matrix((np.ones(n, bool), (np.arange(n), np.arange(n) % 6)), shape=(n, 6))
    plain = configured({"a": 1, "b": 1}, ["a", "b"])
    block, facts = Candidates(np.arange(n, dtype=np.int32), items, scores, ("a", "b")), np.zeros((6, 2), np.float32)
    learnt = learn_blend([(block, truth, facts)], plain)
    assert np.isfinite(learnt.weights).all() and (learnt.weights[:, :6] >= 0).all()
    part, bias = learnt.parts(block, facts)
    assert np.isfinite(part).all() and np.ptp(part.sum(-1) + bias) < 1e-5


@pytest.mark.skipif(not (REAL / "lastfm-s3rec").is_dir(), reason="real data are not here")
def test_real_sequences(no_search: None) -> None:
    """Published anchors (popularity .0440/.0203 on the test part) and, on validation, a blend above its best channel."""
    data = read_data(REAL / "lastfm-s3rec")
    _, q = pose(data, TEST)
    assert len(q.who) == 1090 and q.truth.nnz == 1090
    t = acc.accuracy(data)["validation"].table
    ndcg = t[(t["metric"] == "NDCG") & (t["k"] == 10) & (t["ranking"] == "full")].set_index("model")["value"]
    assert ndcg["blend"] > ndcg.drop(["blend", "blend without content"]).max() and ndcg["random"] < .01
