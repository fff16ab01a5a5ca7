"""Coarse ranking: replies of every broken kind, judges that fail, and a filter on songs of which little is known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from sunorecsys.config import Config, ConfigError, load_config
from sunorecsys.quality.engagement import demand, engagement, log_ratio
from sunorecsys.quality.judging import cache_file, judge_songs
from sunorecsys.quality.replies import DESCRIPTION, WEIGHTS, ReplyError, overall_quality, parse_reply
from sunorecsys.recommenders.quality_filter import QualityFilter, keep_best
from sunorecsys.stages import open_run
from sunorecsys.testing import AS_OF, toy_tables
from sunorecsys.workspace import Workspace, write_table

SCORES = dict(zip(WEIGHTS, (.5, .8, .6, .4, .7), strict=True))
GOOD = dict(zip(DESCRIPTION, ("techno", "128 bpm", "A minor", ["drums", "synth"], "clean", "dark"), strict=True)) | SCORES
TEXT = json.dumps(GOOD)
OVERALL = .15 * .5 + .30 * .8 + .25 * .6 + .10 * .4 + .20 * .7


def without(*keys: str) -> str:
    return json.dumps({k: v for k, v in GOOD.items() if k not in keys})


def with_(**values: object) -> str:
    return json.dumps(GOOD | values)


READ = {  # replies that hold one judgement, however wrapped
    "exact": TEXT,
    "indented": json.dumps(GOOD, indent=2),
    "keys in another order": json.dumps(dict(reversed(GOOD.items()))),
    "fenced": f"```json\n{TEXT}\n```",
    "fenced without a language": f"```\n{TEXT}\n```",
    "sentence before": f"Sure! Here is the JSON: {TEXT}",
    "sentence after": f"{TEXT}\nLet me know if you need more.",
    "both": f"I think:\n\n{TEXT}\n\nThank you.",
    "single quotes": str(GOOD),
    "trailing comma": TEXT[:-1] + ",}",
    "trailing comma in a list": TEXT.replace('"synth"]', '"synth",]'),
    "byte order mark": "\ufeff" + TEXT,
    "scores as text": with_(**{k: str(v) for k, v in SCORES.items()}),
    "per cent": with_(production_quality="80%"),
    "per cent with a space": with_(production_quality="80 %"),
    "fraction": with_(production_quality="8/10"),
    "more keys": with_(comment="nice"),
    "no description": without(*DESCRIPTION),
    "no mood": without("mood"),
    "mood is null": with_(mood=None),
    "keys in title case": TEXT.replace("production_quality", "Production Quality"),
    "keys with hyphens": TEXT.replace("content_usefulness", "content-usefulness"),
    "said twice": f"{TEXT}\n{TEXT}",
    "braces in a text": with_(mood="dark {sic}"),
    "quotes in a text": with_(mood='so-called "dark"'),
    "an apostrophe before": f"It's this: {TEXT}",
    "an example without scores before": '{"genre": "…"}\n' + TEXT,
    "umlauts": with_(genre="Überschall"),
}

BROKEN = {  # replies that hold none, and what is said of them
    "empty": ("", "empty"),
    "spaces": (" \n\t", "empty"),
    "prose": ("A lovely song with drums.", "no JSON object"),
    "refusal": ("I'm sorry, I cannot listen to audio.", "no JSON object"),
    "a number": ("0.8", "no JSON object"),
    "null": ("null", "no JSON object"),
    "a list": ("[0.5, 0.8]", "no JSON object"),
    "an empty object": ("{}", "no content_usefulness"),
    "cut off in a text": (TEXT[:40], "ends within"),
    "cut off before the end": (TEXT[:-1], "ends within"),
    "cut off in a fence": (f"```json\n{TEXT[:-20]}", "ends within"),
    "only descriptions": (without(*SCORES), "no content_usefulness"),
    "one score missing": (without("production_quality"), "no production_quality"),
    "two scores missing": (without("production_quality", "content_enjoyment"), "no production_quality, content_enjoyment"),
    "misspelt key": (TEXT.replace("production_quality", "producton_quality"), "no production_quality"),
    "nested": (json.dumps({"scores": GOOD}), "no content_usefulness"),
    "above one": (with_(production_quality=1.2), "not a number in"),
    "out of ten": (with_(production_quality=8), "not a number in"),
    "out of a hundred": (with_(production_quality=80), "not a number in"),
    "negative": (with_(production_quality=-.1), "not a number in"),
    "NaN": (TEXT.replace("0.8", "NaN"), "not a number in"),
    "infinity": (TEXT.replace("0.8", "Infinity"), "not a number in"),
    "null score": (with_(production_quality=None), "not a number in"),
    "true": (with_(production_quality=True), "not a number in"),
    "a word": (with_(production_quality="high"), "not a number in"),
    "a list as a score": (with_(production_quality=[.8]), "not a number in"),
    "an object as a score": (with_(production_quality={"value": .8}), "not a number in"),
    "a range": (with_(production_quality="0.7-0.9"), "not a number in"),
    "comma": (with_(production_quality="0,8"), "not a number in"),
    "an exponent": (with_(production_quality="8e-1"), "not a number in"),
    "101 %": (with_(production_quality="101%"), "not a number in"),
    "12/10": (with_(production_quality="12/10"), "not a number in"),
    "of nothing": (with_(production_quality="8/0"), "not a number in"),
    "empty text as a score": (with_(production_quality=""), "not a number in"),
    "two judgements": (TEXT + with_(production_quality=.1), "different judgements"),
    "a key twice": (TEXT[:-1] + ', "production_quality": 0.1}', "comes twice"),
    "a key twice, in two cases": (TEXT[:-1] + ', "Production Quality": 0.1}', "comes twice"),
    "a template echoed": (json.dumps(dict.fromkeys(SCORES, "<number>")), "not a number in"),
    "python that would run": ("{'content_usefulness': __import__('os').getpid()}", "no JSON object"),
    "no quotes at all": (TEXT.replace('"', ""), "no JSON object"),
    "yaml": ("\n".join(f"{k}: {v}" for k, v in GOOD.items()), "no JSON object"),
    "xml": ("<scores><production_quality>0.8</production_quality></scores>", "no JSON object"),
    "markdown table": ("| production_quality | 0.8 |", "no JSON object"),
    "braces without end": ("{" * 15_000, "ends within"),
    "too long": ("word " * 10_000, "characters"),
    "deeply nested": ("{\"a\":" * 3000 + "1" + "}" * 3000, "no JSON object"),
    "a missing colon": (TEXT.replace('"mood":', '"mood"'), "no JSON object"),
    "a lone surrogate": ("\ud800", "no JSON object"),
    "control characters": ("\x00\x01{\x02}", "no JSON object"),
    "the question again": ("Describe this track in detail: its genre, tempo, key", "no JSON object"),
    "an unfinished object after": (TEXT + '\n{"genre": "tech', "ends within"),
    "an example before, the answer cut": (f"E.g. {TEXT}. Mine: {TEXT[:-1]}", "ends within"),
    "an example before, the answer out of range": (TEXT + with_(production_quality=7), "not a number in"),
    "single quotes, a key twice": (str(GOOD)[:-1] + ", 'production_quality': 0.1}", "comes twice"),
    "repeats itself": ('{"genre": "techno", ' * 200, "ends within"),
}


@pytest.mark.parametrize("name", READ)
def test_a_judgement_is_found_however_it_is_wrapped(name: str) -> None:
    said, _ = parse_reply(READ[name])
    assert said["overall_quality_score"] == pytest.approx(OVERALL) and {k: said[k] for k in SCORES} == pytest.approx(SCORES)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_is_a_failure_with_its_reason(name: str) -> None:
    text, why = BROKEN[name]
    with pytest.raises(ReplyError, match=why):
        parse_reply(text)


def test_there_are_fifty_broken_replies() -> None:
    assert len({text for text, _ in BROKEN.values()}) >= 50


@pytest.mark.parametrize("seed", range(30))
def test_no_damage_makes_a_score_up(seed: int) -> None:
    "Bytes cut, doubled and changed: the answer is the true one, that of numbers that stand in the reply, or a failure."
    rng = np.random.default_rng(seed)
    for _ in range(40):
        t = list(TEXT)
        for at in rng.integers(0, len(t), 3):
            t[at] = rng.choice(list('{}",:.0123456789 ab')) if rng.random() < .7 else ""
        try:
            said, _ = parse_reply("".join(t))
        except ReplyError:
            continue
        assert all(0 <= said[k] <= 1 for k in WEIGHTS) and said["overall_quality_score"] == pytest.approx(overall_quality(said))
        assert sum(said[k] != v for k, v in SCORES.items()) <= 3


class Fixed:
    "A judge that says what it is told to."
    name, version, sampling_rate, key = "flamingo", "1", 8000, "overall_quality_score"

    def __init__(self, *says: object):
        self.says, self.batches = says, []

    def judge(self, sounds: list[np.ndarray], attempt: int = 0) -> list[object]:
        self.batches.append(len(sounds))
        return [self.says[min(attempt, len(self.says) - 1)]] * len(sounds)


@pytest.fixture
def songs(tmp_path: Path) -> pd.DataFrame:
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", np.full(8000, .1, np.float32), 8000)
    return pd.DataFrame({"song_id": [f"s{i}" for i in range(6)], "audio": [f"{i}.wav" for i in range(6)]})


def test_a_failure_is_recorded_and_asked_again(songs: pd.DataFrame, tmp_path: Path) -> None:
    done = judge_songs(songs, Fixed("no JSON object in the reply"), tmp_path / "c", root=tmp_path, progress=False)
    assert len(done.failed) == 6 and not done.scores
    assert all("scores" not in json.loads(cache_file(tmp_path / "c", s).read_text()) for s in songs["song_id"])
    again = judge_songs(songs, Fixed({"overall_quality_score": .4}), tmp_path / "c", root=tmp_path, progress=False)
    assert len(again.judged) == 6 and not again.failed


def test_the_second_attempt_asks_only_what_failed(songs: pd.DataFrame, tmp_path: Path) -> None:
    judge = Fixed("no JSON object in the reply", {"overall_quality_score": .4})
    done = judge_songs(songs, judge, tmp_path / "c", root=tmp_path, batch_size=4, progress=False)
    assert len(done.judged) == 6 and judge.batches == [4, 4, 2, 2]


def test_an_error_of_the_judge_stops_the_run_and_keeps_what_was_judged(songs: pd.DataFrame, tmp_path: Path) -> None:
    class Breaks(Fixed):
        def judge(self, sounds: list[np.ndarray], attempt: int = 0) -> list[object]:
            if len(self.batches) == 2:
                raise RuntimeError("device-side assert")
            return super().judge(sounds, attempt)
    with pytest.raises(RuntimeError, match="device-side"):
        judge_songs(songs, Breaks({"overall_quality_score": .4}), tmp_path / "c", root=tmp_path, batch_size=2, progress=False)
    done = judge_songs(songs, Fixed({"overall_quality_score": .4}), tmp_path / "c", root=tmp_path, batch_size=2, progress=False)
    assert len(done.known) == 4 and len(done.judged) == 2


def test_one_viral_song_moves_nobody() -> None:
    rng = np.random.default_rng(0)
    plays, likes = rng.integers(5, 200, 400).astype(float), rng.integers(0, 5, 400).astype(float)
    usual, viral = log_ratio(likes, plays), log_ratio(np.append(likes, 9e8), np.append(plays, 1e9))[:-1]
    assert np.abs(usual - viral).max() < .02
    days = rng.uniform(5, 70, 400)
    assert np.abs(demand(plays, days) - demand(np.append(plays, 1e9), np.append(days, 70.))[:-1]).max() < .03


def test_a_catalogue_of_equals_loses_nothing() -> None:
    songs = pd.DataFrame({"song_id": [f"s{i}" for i in range(50)], "created_at": AS_OF - pd.Timedelta(days=40)})
    who = [f"u{j}" for j in range(12)]
    plays = pd.DataFrame([(u, s) for u in who for s in songs["song_id"]], columns=["user_id", "song_id"]).assign(
        timestamp=AS_OF - pd.Timedelta(days=9), interaction_type="play", weight=1.0)
    model = QualityFilter().fit(songs=songs, interactions=plays, as_of=AS_OF)
    assert model.table["score"].between(.49, .51).all() and model.filter(songs["song_id"].tolist())[1]["filtered"] == 0


@pytest.mark.parametrize("without", ["song_stats", "interactions", "impressions", "all"])
def test_quality_without_one_of_its_inputs(without: str) -> None:
    gone = ("song_stats", "interactions", "impressions") if without == "all" else (without,)
    tables = {k: v for k, v in toy_tables().items() if k not in gone}
    table = QualityFilter().fit(**tables, as_of=AS_OF).table
    assert np.isfinite(table["score"]).all() and table["score"].between(0, 1).all()
    assert without != "all" or (table["score"] == .5).all()


def test_songs_without_dates_and_an_undated_log() -> None:
    tables = toy_tables()
    never = pd.Series(pd.NaT, tables["songs"].index, dtype="datetime64[us, UTC]")
    undated = tables["interactions"].assign(timestamp=pd.Series(pd.NaT, tables["interactions"].index, dtype="datetime64[us, UTC]"))
    ageless = tables["songs"].assign(created_at=never)
    for some in ({"songs": ageless}, {"interactions": undated}, {"songs": ageless, "interactions": undated}):
        table = QualityFilter().fit(**tables | some, as_of=AS_OF).table
        assert table["score"].between(0, 1).all()


def test_a_list_is_never_short() -> None:
    rng = np.random.default_rng(0)
    items = np.array([rng.permutation(100)[:40] for _ in range(20)])
    items[0, 5:] = -1
    stay = keep_best(items, np.zeros(100), np.zeros(100, bool), .3, at_least=15)
    assert (stay.sum(1) == np.minimum((items >= 0).sum(1), 15)).all() and not stay[items < 0].any()
    assert not keep_best(np.full((2, 0), -1), np.zeros(1), np.zeros(1, bool), .3, 5).size


def test_engagement_of_no_songs() -> None:
    from sunorecsys.codes import IdMap, no_plays
    assert len(engagement(no_plays(IdMap([])), pd.Series([], dtype="datetime64[us, UTC]"), AS_OF)) == 0


def test_settings_of_the_filter(tmp_path: Path) -> None:
    for wrong, why in (("quality_filter.threshold_is=share", "threshold_is"), ("quality_filter.weights.flamigo=1", "flamingo"),
                       ("quality_filter.weights.flamingo=-1", "flamingo"), ("quality_filter.min_plays=-1", "min_plays")):
        with pytest.raises(ConfigError, match=why):
            load_config(tmp_path / "none.yaml", [wrong])
    assert load_config(tmp_path / "none.yaml", ["quality_filter.weights.flamingo=1"]).quality_filter.weights.flamingo == 1


def test_the_file_of_scores_of_a_run_lies_in_its_workspace(tmp_path: Path) -> None:
    ws, tables = Workspace(tmp_path / "ws"), toy_tables()
    for name in ("songs", "song_stats"):
        write_table(getattr(ws, name), tables[name])
    write_table(ws.log / "toy.parquet", tables["interactions"])
    run = lambda file: open_run(ws.root, settings=[f"quality_filter.quality_scores_file={file}"]) # noqa: E731
    with pytest.raises(FileNotFoundError, match="sunorecsys quality"):
        run("quality.json")
    (tmp_path / "outside.json").write_text("{}")
    for outside in ("../outside.json", str(tmp_path / "outside.json")):
        with pytest.raises(ValueError, match="outside the workspace"):
            run(outside)
    (ws.root / "quality.json").write_text("{}")
    first = run("quality.json").folder
    assert run("quality.json").folder == first
    (ws.root / "quality.json").write_text(json.dumps({"s00": {"scores": {"overall_quality_score": .1}}}))
    assert run("quality.json").folder != first and Config().quality_filter.quality_scores_file is None
