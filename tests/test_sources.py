"""Every kind of bad input ends in one clear message or is handled; a failed ingestion changes nothing."""
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sunorecsys.data import staging, tables
from sunorecsys.data.log import read_log
from sunorecsys.data.sources import SOURCES, ingest
from sunorecsys.data.tables import SourceError
from sunorecsys.schema import TableError, fields
from sunorecsys.workspace import Locked, Workspace, lock

REAL = Path(os.environ.get("SUNORECSYS_REAL_DATA", Path(__file__).parents[2] / "shared/data"))
real = pytest.mark.skipif(not (REAL / "suno/songs.json").exists(), reason="real data is not here")
NOW = pd.Timestamp("2026-11-20", tz="UTC")
SONGS = [{"song_id": "a", "title": "Amber", "user_id": "maker", "created_at": 1762976361872, "tags": ["folk"], "prompt": "la la",
          "play_count": 5, "upvote_count": 2, "comment_count": 0, "days_since_creation": 1},
         {"song_id": "b", "title": "Blue", "user_id": "maker", "created_at": 1762976361872, "tags": [], "prompt": "",
          "play_count": 50, "upvote_count": 20, "comment_count": 3, "days_since_creation": 0}]

def snapshot(root: Path) -> dict[str, bytes]:
    "All files of a workspace but its lock."
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock"}

def bring(source, path, root, **kw):
    return ingest(source, path, root, progress=False, **{"now": NOW, **kw})

@pytest.fixture
def ws(tmp_path) -> Workspace:
    "A workspace with songs a and b."
    (tmp_path / "songs.json").write_text(json.dumps(SONGS))
    bring("suno", tmp_path / "songs.json", tmp_path / "w")
    return Workspace(tmp_path / "w")

def refused(ws: Workspace, path: Path, *words: str, source: str = "table", **kw) -> str:
    "Ingest, demand one error with these words, and that nothing changed; returns the message."
    before = snapshot(ws.root)
    with pytest.raises((SourceError, TableError)) as e:
        bring(source, path, ws.root, **kw)
    assert snapshot(ws.root) == before
    assert not (ws.root / ".ingest.tmp").exists()
    missing = [w for w in words if w not in str(e.value)]
    assert not missing, f"{missing} not in: {e.value}"
    assert len(str(e.value)) < 2000
    return str(e.value)

def skipped(ws: Workspace, path: Path, source: str = "table", **kw) -> pd.DataFrame:
    "Ingest with skip; the rejected rows of this source."
    report = bring(source, path, ws.root, on_bad_row="skip", **kw)
    rejected = pd.read_parquet(ws.rejected).query("source == @report.name")
    assert len(rejected) == report.counts.rejected
    return rejected

def plays(tmp_path: Path, body: str | bytes, name: str = "plays.csv", header: bytes = b"user_id,song_id,timestamp,weight\n") -> Path:
    path = tmp_path / name
    path.write_bytes(header + (body.encode() if isinstance(body, str) else body))
    return path

# rows that the schema refuses: (row, column, the value shown, a word of the reason)
BAD_ROWS = {
    "NaN id": ("nan,a,2026-11-01,1", "user_id", "nan", "missing"),
    "empty id": (",a,2026-11-01,1", "user_id", "", "missing"),
    "wrong type": ("ana,a,2026-11-01,loud", "weight", "'loud'", "not a number"),
    "infinite": ("ana,a,2026-11-01,inf", "weight", "'inf'", "not a number"),
    "negative weight": ("ana,a,2026-11-01,-1", "weight", "'-1'", "at least 0"),
    "future time": ("ana,a,2027-01-01,1", "timestamp", "'2027-01-01'", "future"),
    "no time": ("ana,a,yesterday,1", "timestamp", "'yesterday'", "not a time"),
    "unknown song": ("ana,zz,2026-11-01,1", "song_id", "'zz'", "no song of the workspace"),
    "10 MB field": (f"{'x' * 10_000_000},a,2026-11-01,1", "user_id", "10,000,002 characters", "longer than 256"),
}

@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_row(ws, tmp_path, kind):
    row, column, value, reason = BAD_ROWS[kind]
    path = plays(tmp_path, f"ana,a,2026-11-01,1\n{row}\nben,b,2026-11-02T08:00:00+02:00,2\n")
    refused(ws, path, "plays.csv", "row 3", f"'{column}'", value, reason)
    rejected = skipped(ws, path)
    assert rejected["row"].tolist() == [3] and column in rejected["reason"].iloc[0] and reason in rejected["reason"].iloc[0]
    assert len(rejected["record"].iloc[0]) <= 2000
    log = read_log(ws)
    assert log["user_id"].tolist() == ["ana", "ben"]

def test_times(ws, tmp_path):
    "Naive is UTC; numbers want a unit, and the right one; several bad ones are each named."
    bring("table", plays(tmp_path, "ana,a,2026-11-01 08:00:00,1\nben,b,2026-11-01T08:00:00+02:00,1\n"), ws.root)
    assert read_log(ws)["timestamp"].dt.hour.tolist() == [6, 8]
    numbers = plays(tmp_path, "ana,a,1762000000,1\n", "numbers.csv")
    refused(ws, numbers, "--time-unit", "1762000000")
    refused(ws, numbers, "is the unit right?", time_unit="ms")
    assert bring("table", numbers, ws.root, time_unit="s").counts.since == pd.Timestamp(1762000000, unit="s", tz="UTC")
    mixed = plays(tmp_path, "ana,a,1762000000,1\nben,a,soon,1\ncleo,a,99999999999999999999,1\ndan,a,,1\neve,a,2600000000,1\n", "mixed.csv")
    refused(ws, mixed, "3 problem(s)", "row 3", "'soon'", "row 4", "row 6", "future", time_unit="s")
    assert skipped(ws, mixed, time_unit="s")["row"].tolist() == [3, 4, 6]

def test_columns(ws, tmp_path):
    path = plays(tmp_path, "ana,a,2026-11-01,1\n", header=b"uid,song_id,ts,weight\n")
    refused(ws, path, "no column 'user_id'", "--map user_id=", "uid, song_id, ts, weight")
    refused(ws, path, "'uidd'", "did you mean 'uid'", mapping={"user_id": "uidd"})
    refused(ws, path, "takes no mapping", source="suno", mapping={"user_id": "uid"})
    refused(ws, plays(tmp_path, "ana,a,b,1\n", "twice.csv", b"user_id,song_id,song_id,weight\n"), "'song_id'", "twice")
    report = bring("table", path, ws.root, mapping={"user_id": "uid", "timestamp": "ts", "mood": "weight"})
    part = pd.read_parquet(ws.log / f"{report.name}.parquet")
    assert part["mood"].tolist() == ["1"] and part["weight"].tolist() == [1.0]
    refused(ws, path, "no source 'spotify'", source="spotify")

@pytest.mark.parametrize("dress", ["bom", "crlf", "bom+crlf", "gzip", "tsv", "quoted"])
def test_dress(ws, tmp_path, dress):
    "The same rows in other clothes."
    text = 'user_id,song_id,timestamp,weight\n"an,a",a,2026-11-01,1\nben,b,,2\n'
    name = "plays.csv"
    if "quoted" in dress:
        text = text.replace("ben,b", '"ben","b"')
    if dress == "tsv":
        text, name = text.replace('"an,a"', "an;a").replace(",", "\t").replace("an;a", "an,a"), "plays.tsv"
    raw = (b"\xef\xbb\xbf" if "bom" in dress else b"") + (text.replace("\n", "\r\n") if "crlf" in dress else text).encode()
    path = tmp_path / (name + (".gz" if dress == "gzip" else ""))
    path.write_bytes(gzip.compress(raw) if dress == "gzip" else raw)
    report = bring("table", path, ws.root)
    assert (report.counts.interactions, report.counts.undated, report.dated) == (2, 1, True)
    assert read_log(ws)["user_id"].tolist() == ["ben", "an,a"]

def test_broken_utf8_csv(ws, tmp_path):
    path = plays(tmp_path, b"ana,a,2026-11-01,1\nb\xe9n,b,2026-11-01,1\ncleo,b,2026-11-01,1\n")
    refused(ws, path, "row 3", "'user_id'", "b\ufffdn", "not UTF-8")
    assert skipped(ws, path)["row"].tolist() == [3]
    utf16 = tmp_path / "utf16.csv"
    utf16.write_bytes("user_id,song_id\nana,a\n".encode("utf-16"))
    refused(ws, utf16, "UTF-16")

def test_broken_utf8_json(ws, tmp_path):
    path = tmp_path / "more.json"
    more = [{**SONGS[0], "song_id": s, "title": t} for s, t in (("c", "Coral"), ("d", "DIRT"), ("e", "Elm"))]
    path.write_bytes(json.dumps(more).encode().replace(b"DIRT", b"caf\xe9"))
    refused(ws, path, "row 2", "not UTF-8", source="suno")
    assert skipped(ws, path, "suno")["row"].tolist() == [2]
    assert pd.read_parquet(ws.songs)["song_id"].tolist() == ["a", "b", "c", "e"]
    path.write_bytes(json.dumps(more).encode().replace(b"DIRT", b"\\ud83d")) # half an emoji: legal JSON, no text
    refused(ws, path, "row 2", "not UTF-8", source="suno")

def test_broken_utf8_elsewhere(ws, tmp_path):
    lines = tmp_path / "seq.txt"
    lines.write_bytes(b"ana a b\nb\xffn a\n\ncleo b\n")
    refused(ws, lines, "seq.txt", "row 2", "not UTF-8", source="sequences")
    assert skipped(ws, lines, "sequences")["row"].tolist() == [2]
    parquet = tmp_path / "p.parquet"
    raw = pa.array([b"ana", b"b\xffn"], pa.binary())
    pq.write_table(pa.table({"user_id": pa.Array.from_buffers(pa.string(), 2, raw.buffers()), "song_id": ["a", "b"]}), parquet)
    refused(ws, parquet, "row 2", "'user_id'", "not UTF-8")

EMPTY = [("table", "x.csv"), ("table", "x.parquet"), ("suno", "x.json"), ("playlists", "x.json"), ("sequences", "x.txt")]

@pytest.mark.parametrize("source,name", EMPTY)
def test_empty_and_absent(ws, tmp_path, source, name):
    refused(ws, tmp_path / name, "no such file", source=source)
    (tmp_path / name).touch()
    refused(ws, tmp_path / name, "is empty", source=source)
    refused(ws, tmp_path, "folder", source=source)

def test_no_rows(ws, tmp_path):
    refused(ws, plays(tmp_path, ""), "holds no valid row")
    refused(ws, plays(tmp_path, "\n\n", "blank.csv", b"\n"), "no header")
    for source in ("suno", "playlists"):
        (tmp_path / "none.json").write_text("[]")
        refused(ws, tmp_path / "none.json", "holds no valid row", source=source)
        (tmp_path / "odd.json").write_text('{"songs": 1}')
        refused(ws, tmp_path / "odd.json", "a list of objects was expected", source=source)
    refused(ws, plays(tmp_path, "ana,zz,,1\nben,yy,,1\n", "all.csv"), "no valid row", "2 rejected", "row 2", on_bad_row="skip")

@pytest.mark.parametrize("keep", [.02, .3, .6, .9, .99])
def test_truncated(ws, tmp_path, keep):
    "Cut anywhere: JSON says where, Parquet and gzip that they are not whole; of a CSV only a cut row can be seen."
    text = json.dumps(SONGS, indent=1)
    (tmp_path / "cut.json").write_text(text[:int(len(text) * keep)])
    refused(ws, tmp_path / "cut.json", "cut.json", "line ", "column ", source="suno")
    pd.DataFrame({"user_id": ["ana"] * 100, "song_id": "a"}).to_parquet(tmp_path / "p.parquet")
    raw = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(raw[:int(len(raw) * keep)])
    refused(ws, tmp_path / "cut.parquet", "not a whole Parquet file")
    raw = gzip.compress("".join(f"ana,a,2026-11-01,{i}\n" for i in range(1000)).encode())
    (tmp_path / "cut.csv.gz").write_bytes(raw[:int(len(raw) * keep)])
    refused(ws, tmp_path / "cut.csv.gz", "cut.csv.gz")

def test_cut_row(ws, tmp_path):
    path = plays(tmp_path, "ana,a,2026-11-01,1\nben,b,2026-11-01,1\ncleo,b,20")
    refused(ws, path, "row 4", "has 3 fields, the header 4")
    path = plays(tmp_path, b"ana,\xe9\nben,b,2026-11-01,1\n\ncleo,b,x,1\ndan,b,,1,1,1\n", "ragged.csv")
    refused(ws, path, "row 2", "'ana,\ufffd'")
    assert set(skipped(ws, path)["reason"].str.split().str[0]) == {"has", "timestamp"}

def test_open_quote(ws, tmp_path, monkeypatch):
    refused(ws, plays(tmp_path, 'ana,"a,2026-11-01,1\n' + "ben,b,2026-11-01,1\n" * 100), "row 2")
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1000)
    path = plays(tmp_path, "ana,a,2026-11-01,1\n" * 5 + 'ana,"a,2026-11-01,1\n' + "ben,b,2026-11-01,1\n" * 500, "long.csv")
    refused(ws, path, "is a quote left open?")

def test_big_json_field(ws, tmp_path):
    path = tmp_path / "big.json"
    path.write_text(json.dumps([{**SONGS[0], "song_id": "c", "prompt": "x" * 10_000_000}, {**SONGS[0], "song_id": "d"}]))
    refused(ws, path, "row 1", "'lyrics'", "10,000,002 characters", source="suno")
    assert skipped(ws, path, "suno")["row"].tolist() == [1]

def test_duplicate_songs(ws, tmp_path, monkeypatch):
    path = tmp_path / "twice.json"
    path.write_text(json.dumps([*SONGS, SONGS[0]]))
    refused(ws, path, "row 3", "'song_id'", "'a'", "twice", source="suno")
    assert skipped(ws, path, "suno")["row"].tolist() == [3]
    monkeypatch.setattr(tables, "CHUNK_ROWS", 2) # the repeat is in another chunk
    table = plays(tmp_path, "c,C\nd,D\ne,E\nc,again\n", "songs.csv", b"song_id,title\n")
    refused(ws, table, "row 5", "'c'", "twice", table="songs")
    assert skipped(ws, table, table="songs")["row"].tolist() == [5]
    assert pd.read_parquet(ws.songs).set_index("song_id")["title"]["c"] == "C"
    users = plays(tmp_path, "ana,7\nben,8\nana,9\n", "users.csv", b"user_id,age\n")
    refused(ws, users, "row 4", "'ana'", "twice", table="users")
    assert skipped(ws, users, table="users")["row"].tolist() == [4]
    assert pd.read_parquet(ws.users)["age"].tolist() == ["7", "8"]
    lines = tmp_path / "seq.txt"
    lines.write_text("ana a b\nben b\nana b\n")
    refused(ws, lines, "row 3", "'ana'", "twice", source="sequences")

def test_chunks(ws, tmp_path, monkeypatch):
    "Row numbers, repeated events and rejected rows are right across blocks and chunks; the result is that of one chunk."
    rng = np.random.default_rng(0)
    rows = [f"u{u},{'ab'[s]},2026-10-{d:02d},1,e{e}" for u, s, d, e in
            zip(*(rng.integers(lo, hi, 600) for lo, hi in ((0, 50), (0, 2), (1, 29), (0, 500))), strict=True)]
    bad = {17: "ana,a", 200: "ana,zz,2026-10-01,1,x1",
           201: "ana,a,2026-10-01,1,x2,7", 599: "ana,a,soon,1,x3", 400: "an\xe9,a,2026-10-01,1,x4"}
    for at, row in bad.items():
        rows[at] = row
    text = "\n".join(rows).encode("latin-1")
    path = plays(tmp_path, text, header=b"user_id,song_id,timestamp,weight,event_id\n")
    seen = []
    for block, chunk in ((1 << 24, 250_000), (1 << 24, 97), (2000, 97), (2000, 11)):
        monkeypatch.setattr(tables, "BLOCK_BYTES", block)
        monkeypatch.setattr(tables, "CHUNK_ROWS", chunk)
        rejected = skipped(ws, path)
        assert sorted(rejected["row"]) == sorted(at + 2 for at in bad)
        part = pd.read_parquet(next(ws.log.glob("table-*.parquet")))
        assert part["event_id"].is_unique
        seen.append(part)
    assert all(p.equals(seen[0]) for p in seen)
    assert len(seen[0]) == len({r.split(",")[4] for i, r in enumerate(rows) if i not in bad})

def test_events_repeated_in_two_files(ws, tmp_path):
    "The log gives an event once, whichever files it came in."
    head = b"user_id,song_id,timestamp,event_id\n"
    bring("table", plays(tmp_path, "ana,a,2026-11-01,e1\nana,a,2026-11-01,e1\n", header=head), ws.root)
    bring("table", plays(tmp_path, "ana,a,2026-11-01,e1\nana,b,2026-11-02,e2\n", "p2.csv", header=head), ws.root)
    assert read_log(ws)["event_id"].tolist() == ["e1", "e2"]

def test_one_listener_with_100k_plays(tmp_path):
    rng = np.random.default_rng(0)
    songs = rng.integers(0, 500, 100_000).astype(str)
    (tmp_path / "seq.txt").write_text("fan " + " ".join(songs) + "\nben 1 2\n")
    report = bring("sequences", tmp_path / "seq.txt", tmp_path / "w")
    assert (report.counts.interactions, report.counts.listeners, report.counts.stubs) == (100_002, 2, 500)
    part = pd.read_parquet(tmp_path / "w/log" / f"{report.name}.parquet")
    assert part["position"][99_999] == 100_000 and part["song_id"][:100_000].tolist() == songs.tolist()
    assert part["timestamp"].isna().all() and not report.dated

def test_twice_is_once(ws, tmp_path):
    path = plays(tmp_path, "ana,a,2026-11-01,1\nben,b,,3\n")
    first = bring("table", path, ws.root)
    before = snapshot(ws.root)
    again = bring("table", path, ws.root)
    assert again == first and snapshot(ws.root) == before
    (tmp_path / "copy.csv").write_bytes(path.read_bytes())
    bring("table", tmp_path / "copy.csv", ws.root) # another name, the same content
    assert len(read_log(ws)) == 2

def test_the_same_plays_read_in_another_way(ws, tmp_path):
    "Neither replaced nor doubled without a word; a correction is one when it is called so."
    path = plays(tmp_path, "ana,ben,a,1762000000\nben,ana,b,1762000000\n", header=b"user_id,friend,song_id,timestamp\n")
    first = bring("table", path, ws.root, time_unit="s")
    friend = {"mapping": {"user_id": "friend"}, "time_unit": "s"}
    said = refused(ws, path, "plays.csv is in the log already", "(time_unit s; now mapping user_id=friend, time_unit s)", **friend)
    assert "--replace" in said and read_log(ws)["user_id"].tolist() == ["ana", "ben"]
    again = bring("table", path, ws.root, replace=True, **friend)
    assert again.name == first.name and read_log(ws)["user_id"].tolist() == ["ben", "ana"]
    assert bring("table", path, ws.root, **friend).counts == again.counts # and this is now its way
    refused(ws, path, "in another way", time_unit="s")
    bring("table", path, ws.root, table="interactions", on_bad_row="skip", **friend) # what changes no reading is no other way

def test_a_catalogue_read_in_two_ways_is_merged(ws, tmp_path):
    path = plays(tmp_path, "c,Coral,folk,7\n", "songs.csv", b"song_id,name,style,plays\n")
    days = [bring("table", path, ws.root, table="songs", mapping={"title": "name"}, observed_at=f"2026-11-0{d}") for d in (1, 2)]
    style = bring("table", path, ws.root, table="songs", mapping={"genre": "style"}, observed_at="2026-11-02")
    assert len({days[0].name, days[1].name, style.name}) == 3 and {days[0].name, style.name} < set(json.loads(ws.sources.read_text()))
    song = pd.read_parquet(ws.songs).set_index("song_id").loc["c"]
    assert (song["title"], song["genre"]) == ("Coral", "folk")
    assert len(pd.read_parquet(ws.song_stats).query("song_id == 'c'")) == 2

@pytest.mark.parametrize("body", [b"ana,a,2026-11-01,1\nben,zz\n", b"ana,a,2026-11-01,-1\n", b"", b"\x00" * 50])
def test_a_failed_first_ingestion_leaves_no_folder(tmp_path, body):
    (tmp_path / "there").mkdir()
    for root in (tmp_path / "new", tmp_path / "there" / "a" / "b"):
        with pytest.raises((SourceError, TableError)):
            bring("table", plays(tmp_path, body), root)
        assert not root.exists() and list((tmp_path / "there").iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises((SourceError, TableError)):
        bring("table", plays(tmp_path, body), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"

def test_line_ends_of_old_spreadsheets(ws, tmp_path):
    "A lone CR ends a row, with row numbers as for any other line end; and a line of a sequence file."
    raw = b"user_id,song_id,timestamp,weight\rana,a,2026-11-01,1\rben,b\rcleo,b,,-2\rdan,b,,2\r"
    path = plays(tmp_path, raw, header=b"")
    refused(ws, path, "row 3", "has 2 fields, the header 4")
    assert skipped(ws, path)["row"].tolist() == [3, 4] and read_log(ws)["user_id"].tolist() == ["dan", "ana"]
    lines = tmp_path / "seq.txt"
    lines.write_bytes(b"eve a b\r\rfay zz\rgil b\r")
    assert skipped(ws, lines, "sequences")["row"].tolist() == [3]
    assert {"eve", "gil"} < set(read_log(ws)["user_id"])

HUGE = "1" + "0" * 400
NUMBERS = [("play_count", "plays"), ("duration", "duration_s"), ("created_at", "created_at"), ("word_count", "word_count")]

@pytest.mark.parametrize("field,column", NUMBERS)
@pytest.mark.parametrize("number,shown", [("-" + HUGE, "-1000"), ("1" * 5000, "1" * 40), ("true", "True")])
def test_numbers_that_are_none(ws, tmp_path, field, column, number, shown):
    path = tmp_path / "more.json"
    path.write_text(json.dumps([{**SONGS[0], "song_id": "c"}, {**SONGS[0], "song_id": "d", field: "@"}]).replace('"@"', number))
    refused(ws, path, "more.json", "row 2", f"'{column}'", shown, "is not a", source="suno")
    assert skipped(ws, path, "suno")["row"].tolist() == [2]
    assert pd.read_parquet(ws.songs)["song_id"].tolist() == ["a", "b", "c"]

@pytest.mark.parametrize("age", [HUGE, "Infinity", "30000", "-5", "true", '"old"'])
def test_one_absurd_age_does_not_move_the_harvest(ws, tmp_path, age):
    path = tmp_path / "more.json"
    more = [{**SONGS[0], "song_id": "c"}, {**SONGS[1], "song_id": "d", "days_since_creation": "@"}]
    path.write_text(json.dumps(more).replace('"@"', age))
    report = bring("suno", path, ws.root)
    assert report.counts.song_stats == 2 and "2025-11-13 19:39" in report.notes[0]

def test_a_creation_in_the_future_takes_no_other_song_along(ws, tmp_path):
    path = tmp_path / "more.json"
    path.write_text(json.dumps([{**SONGS[0], "song_id": "c"}, {**SONGS[0], "song_id": "d", "created_at": 4102444800000}]))
    refused(ws, path, "1 problem(s)", "row 2", "'created_at'", "future", source="suno")
    assert skipped(ws, path, "suno")["row"].tolist() == [2]

@pytest.mark.parametrize("field,column", [("title", "title"), ("prompt", "lyrics")])
@pytest.mark.parametrize("value", [{"en": "Moss"}, ["Moss"], True])
def test_no_text_is_made_of_objects(ws, tmp_path, field, column, value):
    path = tmp_path / "more.json"
    path.write_text(json.dumps([{**SONGS[0], "song_id": "c"}, {**SONGS[0], "song_id": "d", field: value}]))
    refused(ws, path, "row 2", f"'{column}'", "is not a text", source="suno")
    assert skipped(ws, path, "suno")["row"].tolist() == [2]

def test_no_id_is_made_of_objects(ws, tmp_path):
    parquet = tmp_path / "p.parquet"
    for ids in ([{"a": 1}], [["ana"]], [True]):
        pq.write_table(pa.table({"user_id": ids, "song_id": ["a"]}), parquet)
        refused(ws, parquet, "row 1", "'user_id'", "is not a id")
    path = tmp_path / "lists.json"
    path.write_text('[{"id": "p", "user_handle": true, "song_ids": ["a"]}, {"id": "q", "user_handle": "ana", "song_ids": [true]}]')
    refused(ws, path, "no valid row", "2 rejected", source="playlists", on_bad_row="skip")
    (tmp_path / "clips.json").write_text('[{"playlist_clips": null}]')
    refused(ws, tmp_path / "clips.json", "row 1", "'song_id'", "missing", source="suno")

def test_playlist_events_are_told_apart(ws, tmp_path):
    "Ids with colons do not meet in one event, and long ones make no event id that is too long."
    (tmp_path / "songs.json").write_text(json.dumps([{**SONGS[0], "song_id": s} for s in ("b", "a:b", "x" * 200)]))
    bring("suno", tmp_path / "songs.json", ws.root)
    lists = [("p:a", "b"), ("p", "a:b"), ("l" * 200, "x" * 200)]
    path = tmp_path / "lists.json"
    path.write_text(json.dumps([{"id": p, "user_handle": "ana", "song_ids": [s]} for p, s in lists]))
    report = bring("playlists", path, ws.root)
    assert (report.counts.interactions, report.counts.repeated) == (3, 0)

def test_lastfm_tags(tmp_path):
    "Faults of the two tag files are told like those of the others, and nothing is left out in silence."
    folder, w = tmp_path / "lastfm", Workspace(tmp_path / "w")
    folder.mkdir()
    tagged = "userID\tartistID\ttagID\tday\tmonth\tyear\n"
    good = {"artists.dat": "id\tname\turl\n1\tA\tx\n", "user_artists.dat": "userID\tartistID\tweight\n7\t1\t10\n",
            "tags.dat": "tagID\ttagValue\n5\trock\n6\tpop\n", "user_taggedartists.dat": tagged + "7\t1\t5\t1\t4\t2009\n"}
    cases = [("tags.dat", "tagID\ttagValue\n5\trock\n6\tpop\n5\tfolk\n", ("row 4", "'tagID'", "'5'", "is there twice")),
             ("tags.dat", "tagID\ttagValue\n5\t\n", ("row 2", "'tagValue'", "is missing")),
             ("tags.dat", "tagID\ttagValue\n5\trock\n6\n", ("row 3", "has 1 fields")),
             ("user_taggedartists.dat", tagged + "7\t1\n", ("row 2", "has 2 fields"))]
    for name, text, words in cases:
        for file, content in (good | {name: text}).items():
            (folder / file).write_text(content)
        refused(w, folder, name, *words, source="lastfm-2k")
        assert len(skipped(w, folder, "lastfm-2k")) == 1
    (folder / "tags.dat").write_text("tagID\ttagValue\n")
    (folder / "user_taggedartists.dat").write_text(tagged)
    assert bring("lastfm-2k", folder, tmp_path / "w2").counts.songs == 1

STARTS = [(b"PK\x03\x04", "Excel"), (b"PAR1", "Parquet"), (b"\x1f\x8b\x08", "gzip"), (b"\xff\xfea\0", "UTF-16")]

@pytest.mark.parametrize("start,word", STARTS)
@pytest.mark.parametrize("source,name", [("table", "x.csv"), ("suno", "x.json"), ("sequences", "x.txt")])
def test_well_known_files_that_are_no_text(ws, tmp_path, start, word, source, name):
    (tmp_path / name).write_bytes(start + bytes(range(200)))
    refused(ws, tmp_path / name, name, word, source=source)

def test_odd_headers(ws, tmp_path):
    refused(ws, plays(tmp_path, "", header=b"user_id,song_id"), "holds no valid row") # not even a line end
    refused(ws, plays(tmp_path, "", header="user_id,song_id\nana,a\n".encode("utf-16-le")), "NUL", "UTF-16")

def test_options_are_checked_first(ws, tmp_path):
    path = plays(tmp_path, "ana,a,1762000000,1\n")
    refused(ws, path, "'h'", "s, ms, us", time_unit="h")
    refused(ws, path, "'song_stats'", "interactions, songs, users", table="song_stats")
    for t in ("soon", "1762976361872", pd.NaT):
        refused(ws, tmp_path / "songs.json", "is no time", source="suno", observed_at=t)
    songs = plays(tmp_path, "c,7,2026-11-01\n", "songs.csv", b"song_id,plays,observed_at\n")
    refused(ws, songs, "'observed_at'", "leave out --observed-at", table="songs", observed_at="2026-11-02")
    report = bring("table", path, ws.root, time_unit="s", mapping={"wieght": "weight"})
    assert any("wieght" in n for n in report.notes) # a misspelt column is kept, and named

@pytest.mark.parametrize("name", ["songs.parquet", "song_stats.parquet", "rejected.parquet", "sources.json"])
@pytest.mark.parametrize("content", [b"PAR1", b"[]", b"", None])
def test_a_damaged_workspace_is_named(ws, tmp_path, name, content):
    if content is None: # a whole table, of something else
        pd.DataFrame({"x": [1]}).to_parquet(ws.root / name)
    else:
        (ws.root / name).write_bytes(content)
    refused(ws, tmp_path / "songs.json", name, source="suno")

def test_every_source_helps():
    for name, source in SOURCES.items():
        assert "Example" in source.help and len(source.help.splitlines()) >= 4, name
        assert all(len(line) <= 150 for line in source.help.splitlines())
    for kind in ("interactions", "songs", "users"):
        assert all(f.name in SOURCES["table"].help for f in fields(kind))

def test_newest_value_wins(ws, tmp_path):
    "A raw harvest updates the title, and erases nothing that it does not know."
    raw = [{"id": "a", "handle": "maker", "title": "Amber II", "play_count": 9, "upvote_count": 3,
            "metadata": {"tags": "", "prompt": "", "duration": 61.0}},
           {"id": "c", "display_name": "new", "title": "Coral", "play_count": 1, "upvote_count": 0,
            "metadata": {"tags": "lofi, rain", "prompt": "words", "duration": 10}}]
    (tmp_path / "raw.json").write_text(json.dumps({"playlist_clips": [{"clip": r} for r in raw]}))
    bring("suno", tmp_path / "raw.json", ws.root, observed_at="2025-12-01")
    songs = pd.read_parquet(ws.songs).set_index("song_id")
    assert songs.index.tolist() == ["a", "b", "c"]
    assert songs["title"].tolist() == ["Amber II", "Blue", "Coral"]
    assert songs["lyrics"]["a"] == "la la" and songs["tags"]["a"].tolist() == ["folk"] and songs["created_at"].notna()["a"]
    assert songs["prompt"]["c"] == "lofi, rain" and songs["tags"]["c"].tolist() == ["lofi", "rain"] and songs["lyrics"]["c"] == "words"
    stats = pd.read_parquet(ws.song_stats)
    assert len(stats) == 4 and stats["observed_at"].nunique() == 2
    assert not {"plays", "play_count", "likes"} & set(songs.columns)

def test_counters_of_a_table(ws, tmp_path):
    path = plays(tmp_path, "c,Coral,7\nd,Dune,\n", "songs.csv", b"song_id,title,plays\n")
    refused(ws, path, "counters without a time", "--observed-at", table="songs")
    assert bring("table", path, ws.root, table="songs", observed_at="2026-11-01").counts.song_stats == 1
    path = plays(tmp_path, "c,Coral,9,1793577600\n", "songs2.csv", b"song_id,title,plays,observed_at\n")
    bring("table", path, ws.root, table="songs", time_unit="s")
    assert pd.read_parquet(ws.song_stats).query("song_id == 'c'")["plays"].tolist() == [7, 9]

def test_everything_is_rejected_once(ws, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps([{"id": "c", "play_count": "many"}, 7, {"title": "no id", "play_count": 1}]))
    refused(ws, tmp_path / "bad.json", "no valid row", "3 rejected", source="suno", on_bad_row="skip")

def test_bad_counters_take_the_song_along(ws, tmp_path):
    (tmp_path / "neg.json").write_text(json.dumps([{**SONGS[0], "song_id": "c", "play_count": -4}, {**SONGS[0], "song_id": "d"},
                                                   {**SONGS[0], "song_id": None}]))
    refused(ws, tmp_path / "neg.json", "row 1", "'plays'", "-4", source="suno")
    assert skipped(ws, tmp_path / "neg.json", "suno")["row"].tolist() == [1, 3]
    assert set(pd.read_parquet(ws.song_stats)["song_id"]) == set(pd.read_parquet(ws.songs)["song_id"]) == {"a", "b", "d"}

def test_stubs(tmp_path):
    "Without a catalogue songs are stubs; a later catalogue names them; then an unknown song is a bad row."
    root = tmp_path / "w"
    bring("table", plays(tmp_path, "ana,a,,1\nana,zz,,1\n"), root)
    assert bring("table", plays(tmp_path, "ana,yy,,1\n", "p2.csv"), root).counts.stubs == 1
    (tmp_path / "songs.json").write_text(json.dumps(SONGS))
    bring("suno", tmp_path / "songs.json", root)
    songs = pd.read_parquet(root / "songs.parquet").set_index("song_id")
    assert songs["stub"].to_dict() == {"a": False, "zz": True, "yy": True, "b": False} and songs["title"]["a"] == "Amber"
    refused(Workspace(root), plays(tmp_path, "ana,xx,,1\n", "p3.csv"), "row 2", "'xx'", "no song of the workspace")
    bring("table", tmp_path / "p2.csv", root) # a stub is still known

def test_playlists(ws, tmp_path):
    lists = [{"id": "p1", "user_handle": "ana", "song_ids": ["a", "b", "a"]}, {"id": "p2", "user_handle": None, "song_ids": ["a"]},
             {"id": "p3", "user_handle": "ben", "song_ids": [["a"]]}, {"id": "p4", "user_handle": "ben", "song_ids": ["zz"]},
             {"id": "p5", "user_handle": "ben"}, "p6", {"id": "p7", "user_handle": "ben", "song_ids": ["b"]}]
    path = tmp_path / "lists.json"
    path.write_text(json.dumps(lists))
    refused(ws, path, "row 3", "song_ids", source="playlists")
    assert sorted(skipped(ws, path, "playlists")["row"]) == [2, 3, 4, 5, 6]
    path.write_text(json.dumps([lists[0], {"id": "p7", "user_handle": "ben", "song_ids": ["b", "a"]}])) # harvested again, one song more
    bring("playlists", path, ws.root)
    log = read_log(ws)
    assert len(log) == 4 and set(log["interaction_type"]) == {"add"} and log["timestamp"].isna().all()

def test_lastfm_dirt(tmp_path):
    folder = tmp_path / "lastfm"
    folder.mkdir()
    files = {"artists.dat": 'id\tname\turl\n1\tSigur R\xf3s\tx\n2\t"Weird Al\tx\n',
             "user_artists.dat": "userID\tartistID\tweight\n7\t1\t10\n7\t2\t1\n8\t3\t5\n"}
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    w = Workspace(tmp_path / "w")
    refused(w, folder, "user_artists.dat", "row 4", "'3'", "no song", source="lastfm-2k")
    skipped(w, folder, "lastfm-2k")
    assert pd.read_parquet(w.songs)["title"].tolist() == ["Sigur R\ufffds", '"Weird Al']
    notes = json.loads(w.sources.read_text()).popitem()[1]["notes"]
    assert any("not UTF-8" in n for n in notes) and any("tags.dat" in n for n in notes)
    (folder / "user_artists.dat").write_text("user\tartist\n7\t1\n")
    refused(w, folder, "no column 'userID'", source="lastfm-2k")
    (folder / "user_artists.dat").unlink()
    refused(w, folder, "user_artists.dat", "no such file", source="lastfm-2k")
    refused(w, tmp_path / "w/songs.parquet", "give the folder", source="lastfm-2k")

def test_parquet_types(ws, tmp_path):
    "Large integer ids beside missing ones keep their digits; categories and times arrive as they are."
    big = 2**60 + 1
    frame = pa.table({"user_id": pa.array([big, big + 2, None]), "song_id": pa.array(["a", "b", "a"]).dictionary_encode(),
                      "timestamp": pa.array([0, 1, 2], pa.timestamp("ns")), "event_id": pa.array([big, None, 3])})
    pq.write_table(frame, tmp_path / "p.parquet")
    assert skipped(ws, tmp_path / "p.parquet")["row"].tolist() == [3]
    log = read_log(ws)
    assert log["user_id"].tolist() == [str(big), str(big + 2)] and log["event_id"].tolist()[0] == str(big)

def test_disk_full(ws, tmp_path, monkeypatch):
    before = snapshot(ws.root)
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(staging.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        bring("suno", tmp_path / "songs.json", ws.root)
    assert snapshot(ws.root) == before

def test_one_at_a_time(ws, tmp_path):
    with lock(ws, "weekly run"), pytest.raises(Locked, match="weekly run"):
        bring("suno", tmp_path / "songs.json", ws.root)

def test_killed(ws, tmp_path):
    "SIGKILL while rows are staged: the workspace is as it was, and the next ingestion clears up and goes through."
    rows = "".join(f"u{i % 1000},{'ab'[i % 2]},2026-11-01,1\n" for i in range(400_000))
    path = plays(tmp_path, rows)
    before = snapshot(ws.root)
    code = ("import sys; from sunorecsys.data import tables; tables.CHUNK_ROWS = 1000\n"
            "from sunorecsys.data.sources import ingest; ingest('table', sys.argv[1], sys.argv[2], progress=False)")
    child = subprocess.Popen([sys.executable, "-c", code, str(path), str(ws.root)])
    part = ws.root / ".ingest.tmp/log.parquet"
    deadline = time.monotonic() + 60
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert {k: v for k, v in snapshot(ws.root).items() if not k.startswith(".ingest.tmp")} == before
    assert bring("table", path, ws.root).counts.interactions == 400_000
    assert not (ws.root / ".ingest.tmp").exists()

KEYS = st.sampled_from(["tags", "prompt", "duration", "clip"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=4)
SONG = st.dictionaries(st.sampled_from([*SONGS[0], "id", "metadata", "handle", "duration", "is_public", "song_ids", "user_handle"]), JSON)
BYTES = st.binary(max_size=80) | st.text("ab,\"\n\r\t1", max_size=60).map(str.encode)

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SONG | JSON, max_size=4), st.sampled_from(["suno", "playlists"]), st.sampled_from(["raise", "skip"]))
def test_any_json_is_told(tmp_path, records, source, on_bad_row):
    "Whatever JSON a dump holds, it is ingested or refused with one of our errors."
    path = tmp_path / "any.json"
    path.write_text(json.dumps(records))
    try:
        bring(source, path, tmp_path / "w", on_bad_row=on_bad_row)
    except (SourceError, TableError) as e:
        assert "any.json" in str(e)

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BYTES, st.sampled_from(["table", "sequences"]), st.booleans())
def test_any_bytes_are_told(tmp_path, body, source, skip):
    "Likewise for any bytes after a good header."
    path = tmp_path / "any.csv"
    path.write_bytes(b"user_id,song_id,weight\n" + body)
    try:
        bring(source, path, tmp_path / "w", on_bad_row="skip" if skip else "raise")
    except (SourceError, TableError) as e:
        assert "any.csv" in str(e)

@real
def test_real_suno(tmp_path):
    report = bring("suno", REAL / "suno/songs.json", tmp_path)
    assert (report.counts.songs, report.counts.song_stats, report.counts.interactions, report.counts.rejected) == (234, 234, 0, 0)
    songs, stats = pd.read_parquet(tmp_path / "songs.parquet"), pd.read_parquet(tmp_path / "song_stats.parquet")
    assert songs["creator_id"].nunique() == 164 and songs["genre"].isna().sum() == 15
    assert stats["plays"].max() == 159_590 and stats["plays"].median() in (678.5, 679, 694)
    assert (stats["observed_at"] > songs["created_at"].max()).all()
    assert songs["prompt"].str.contains("hyperpop").any() and not songs["prompt"].str.contains("[Verse", regex=False).any()

@real
def test_real_lastfm(tmp_path):
    report = bring("lastfm-2k", REAL / "lastfm-2k", tmp_path)
    assert (report.counts.songs, report.counts.interactions, report.counts.listeners) == (17_632, 92_834, 1_892)
    assert not report.dated and any(n.startswith("5 of 186,479 tag events") for n in report.notes)
    log = read_log(Workspace(tmp_path))
    assert log["weight"].max() == 352_698 and log["timestamp"].isna().all()

@real
def test_real_sequences(tmp_path):
    report = bring("sequences", REAL / "lastfm-s3rec/LastFM.txt", tmp_path)
    assert (report.counts.stubs, report.counts.interactions, report.counts.listeners) == (3_646, 52_551, 1_090)
    part = pd.read_parquet(tmp_path / "log" / f"{report.name}.parquet")
    first = (REAL / "lastfm-s3rec/LastFM.txt").read_text().splitlines()[0].split()
    assert part.query("user_id == @first[0]").sort_values("position")["song_id"].tolist() == first[1:]

@real
def test_real_table(tmp_path):
    "Real prompts through the generic reader, as songs."
    mapping = {"cluster": "cluster_name"}
    report = bring("table", REAL / "suno/prompts.csv", tmp_path, table="songs", mapping=mapping, on_bad_row="skip")
    assert report.counts.songs + report.counts.rejected == 16_707 and report.counts.songs > 16_000
