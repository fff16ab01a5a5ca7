"""The log and weekly mixing: against a naive reference, with several writers at once, and with damaged files."""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql

from sunorecsys.data import log
from sunorecsys.data.log import LOG_SCHEMA, UNDATED, EventStore, LogError, append_partition, microseconds, read_log, utc
from sunorecsys.data.user_history import UserHistoryManager, mixing_boundary, weekly_mix
from sunorecsys.schema import Col, TableError, validate
from sunorecsys.workspace import Workspace

DAY = 86_400_000_000
MONDAY = microseconds("2026-11-16")

def plays(**columns):
    "A validated frame of interactions."
    return validate(pd.DataFrame(columns), "interactions")[0]

# weekly mixing -------------------------------------------------------------------------------------------------------

def naive_mix(rows, last_n, as_of, weekly_update_day, mixing=True):
    "Weekly mixing of [(user, item, t)] for people: one listener at a time, one song at a time."
    as_of_us = microseconds(as_of)
    b = as_of_us - 1
    while True: # walk back to the last 00:00 of that weekday strictly before as_of
        b -= b % DAY
        if pd.Timestamp(b, unit="us").weekday() == weekly_update_day:
            break
        b -= 1
    out = []
    for user in sorted({u for u, _, _ in rows}):
        newest = {}
        ordered = sorted(((t, k, i) for k, (u, i, t) in enumerate(rows) if u == user and (t == UNDATED or t < as_of_us)))
        for t, k, i in ordered:
            newest[i] = (t, k)
        songs = sorted((t, k, i) for i, (t, k) in newest.items())
        if not mixing:
            out += [(user, i, t) for t, _, i in songs[-last_n:]]
            continue
        old, new = [s for s in songs if s[0] < b], [s for s in songs if s[0] >= b]
        take_new, take_old = [], []
        while len(take_new) + len(take_old) < last_n and (old or new):
            want_new = len(take_new) < (last_n + 1) // 2
            if new and (want_new or not old):
                take_new.insert(0, new.pop())
            elif old and len(take_old) < last_n // 2 or not new:
                take_old.insert(0, old.pop())
            else:
                take_new.insert(0, new.pop())
        out += [(user, i, t) for t, _, i in take_old + take_new]
    return out

times = st.one_of(st.just(UNDATED), st.integers(-21, 10).map(lambda d: MONDAY + d * DAY), st.integers(MONDAY - 21 * DAY, MONDAY + 10 * DAY))
events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), times), max_size=60)
ROW = st.tuples(st.integers(0, 2), st.integers(0, 5), st.none() | st.integers(0, 9), st.none() | st.integers(0, 6)) # part, song, day, event
moments = st.one_of(st.integers(0, 9).map(lambda d: MONDAY + d * DAY), st.integers(MONDAY - 10 * DAY, MONDAY + 12 * DAY))

def mixed(rows, **kw):
    a = np.array(rows, dtype=np.int64).reshape(-1, 3)
    u, i, t = weekly_mix(a[:, 0].astype(np.int32), a[:, 1].astype(np.int32), a[:, 2], **kw)
    assert (u.dtype, i.dtype, t.dtype) == (np.int32, np.int32, np.int64)
    return list(zip(u.tolist(), i.tolist(), t.tolist(), strict=True))

@settings(max_examples=400, deadline=None)
@given(rows=events, at=moments, last_n=st.integers(1, 12), day=st.integers(0, 6), mixing=st.booleans())
def test_weekly_mix_is_the_naive_one(rows, at, last_n, day, mixing):
    as_of = pd.Timestamp(at, unit="us", tz="UTC")
    got = mixed(rows, last_n=last_n, as_of=as_of, weekly_update_day=day, use_weekly_mixing=mixing)
    assert got == naive_mix(rows, last_n, as_of, day, mixing)

@settings(max_examples=150, deadline=None)
@given(rows=events, later=events, at=moments, seed=st.integers(0, 99))
def test_nothing_at_or_after_as_of_matters(rows, later, at, seed):
    as_of = pd.Timestamp(at, unit="us", tz="UTC")
    past = [r for r in rows if r[2] < at]
    future = [(u, i, at + abs(t) % DAY if t != UNDATED else at) for u, i, t in later]
    rng, together = np.random.default_rng(seed), list(past)
    for row in future:
        together.insert(rng.integers(0, len(together) + 1), row)
    assert mixed(together, last_n=6, as_of=as_of) == mixed(past, last_n=6, as_of=as_of)

def test_time_of_day_is_no_part_of_the_week():
    "An earlier system began the week at Monday *now*, so that Monday morning was old on Monday at noon."
    assert mixing_boundary("2026-11-16T12:00") == utc("2026-11-16")
    rows = [(0, k, MONDAY - 9 * DAY + k) for k in range(10)] + [(0, 99, MONDAY + DAY // 3)]
    assert mixed(rows, last_n=4, as_of="2026-11-16T12:00")[-1][1] == 99
    assert [i for _, i, _ in mixed(rows, last_n=2, as_of="2026-11-16T12:00")] == [9, 99]

def test_a_short_half_is_filled():
    "50 old songs and 1 new one gave 26."
    rows = [(0, k, MONDAY - 9 * DAY + k) for k in range(50)] + [(0, 99, MONDAY + 5)]
    assert len(mixed(rows, last_n=50, as_of="2026-11-18")) == 50
    rows = [(0, k, MONDAY + k) for k in range(60)] + [(0, 99, MONDAY - 5)]
    got = mixed(rows, last_n=50, as_of="2026-11-18")
    assert len(got) == 50 and got[0][1] == 99 and got[1][1] == 11

def test_monday_midnight_is_the_week_that_ended_and_wednesday_since_monday():
    assert mixing_boundary("2026-11-16") == utc("2026-11-09")
    assert mixing_boundary("2026-11-18") == utc("2026-11-16")
    assert mixing_boundary("2026-11-16T00:00:00.000001") == utc("2026-11-16")
    assert mixing_boundary("2026-11-16T01:00+01:00") == utc("2026-11-09")

def test_unknown_codes_and_empty_input():
    assert mixed([(-1, 2, 5), (0, -1, 5), (0, 3, 5)], last_n=3, as_of="2026-11-18") == [(0, 3, 5)]
    assert mixed([], last_n=3, as_of="2026-11-18") == []
    with pytest.raises(ValueError, match="last_n"):
        mixed([], last_n=0, as_of="2026-11-18")

def test_a_listener_with_100k_plays():
    rng = np.random.default_rng(0)
    n = 100_000
    t = MONDAY - rng.integers(0, 200 * DAY, n)
    u, i, _ = weekly_mix(np.zeros(n, np.int32), rng.integers(0, 30_000, n).astype(np.int32), t, last_n=50, as_of="2026-11-16")
    assert len(i) == len(set(i.tolist())) == 50

# the manager ---------------------------------------------------------------------------------------------------------

def test_manager_agrees_with_the_reference_and_with_itself(tmp_path):
    rng = np.random.default_rng(1)
    n = 3_000
    rows = [(int(u), int(i), UNDATED if rng.random() < .1 else int(MONDAY + rng.integers(-20 * DAY, 3 * DAY)))
            for u, i in zip(rng.integers(0, 12, n), rng.integers(0, 300, n), strict=True)]
    frame = pd.DataFrame(rows, columns=[Col.USER, Col.SONG, Col.TIME])
    at = frame[Col.TIME]
    frame = frame.astype({Col.USER: "str", Col.SONG: "str"})
    frame[Col.TIME] = pd.to_datetime(at.mask(at == UNDATED), unit="us", utc=True)
    history = UserHistoryManager(url=tmp_path / "history.db", last_n=20)
    assert history.add_interactions(frame) == n
    for as_of in ("2026-11-16", "2026-11-18T07:30"):
        want = sorted((str(u), str(i)) for u, i, _ in naive_mix(rows, 20, as_of, 0))
        got = history.last_n_interactions(as_of=as_of)
        assert sorted(zip(got[Col.USER], got[Col.SONG], strict=True)) == want
        for user in ("0", "7"):
            one = history.get_user_interactions(user, as_of=as_of)
            assert list(one.columns) == LOG_SCHEMA.names
            pd.testing.assert_frame_equal(one[list(got)], got[got[Col.USER] == user].reset_index(drop=True))
    some = history.last_n_interactions(["7", "nobody"], as_of="2026-11-16")
    assert set(some[Col.USER]) == {"7"}

def test_skips_and_weightless_rows_are_no_seeds(tmp_path):
    history = UserHistoryManager(tmp_path / "history.db")
    history.add_interaction("ana", "moss", "2026-11-17", interaction_type="skip")
    history.add_interaction("ana", "tide", "2026-11-17", weight=0)
    history.add_interaction("ana", "dusk", "2026-11-17", interaction_type="like")
    assert history.get_user_interactions("ana")[Col.SONG].tolist() == ["dusk"]
    assert history.last_n_interactions()[Col.SONG].tolist() == ["dusk"]
    assert history.user_ids == ["ana"]

@pytest.mark.parametrize(("marked", "now", "due"), [
    (None, "2026-11-18", True),
    ("2026-11-16", "2026-11-16", False), ("2026-11-16T09:00", "2026-11-22T23:59", False), ("2026-11-16T09:00", "2026-11-23", True),
    ("2026-11-09T09:00", "2026-11-17", True), # the missed Monday
    ("2026-11-09T09:00", "2026-11-22", True), ("2026-11-15T23:59", "2026-11-16", True),
])
def test_should_update_models(tmp_path, marked, now, due):
    history = UserHistoryManager(url=tmp_path / "history.db")
    if marked:
        history.mark_updated(marked)
    assert history.should_update_models(now) is due
    history.mark_updated(now)
    assert not history.should_update_models(now)
    assert not UserHistoryManager(url=tmp_path / "history.db").should_update_models(now) # remembered

def test_update_day_and_bad_arguments(tmp_path):
    history = UserHistoryManager(url=tmp_path / "history.db", weekly_update_day=3)
    history.mark_updated("2026-11-16")
    assert not history.should_update_models("2026-11-18T23:00") and history.should_update_models("2026-11-19")
    for bad in ({"last_n": 50}, {"url": "a.db", "workspace": tmp_path}, {"url": tmp_path / "a.db", "weekly_update_day": 7}):
        with pytest.raises(ValueError):
            UserHistoryManager(**bad)

def test_url_path_and_workspace_are_the_same_database(tmp_path):
    UserHistoryManager(url=f"sqlite:///{tmp_path / 'history.db'}").add_interaction("ana", "moss", "2026-11-17")
    append_partition(tmp_path / "log", plays(user_id=["ana"], song_id=["tide"], timestamp=["2026-11-16"]))
    assert UserHistoryManager(tmp_path / "history.db").get_user_interactions("ana")[Col.SONG].tolist() == ["moss"]
    both = UserHistoryManager(workspace=tmp_path)
    assert both.get_user_interactions("ana")[Col.SONG].tolist() == ["tide", "moss"]
    assert UserHistoryManager(workspace=Workspace(tmp_path)).user_ids == ["ana"]

# the old JSON --------------------------------------------------------------------------------------------------------

OLD = {"user_history": {
    "ana": [{"song_id": "moss", "timestamp": "2026-11-10T08:00:00.123456", "weight": 3.0, "type": "play"},
            {"song_id": "moss", "timestamp": "2026-11-10T08:00:00.123456", "weight": 3.0, "type": "play"},
            {"song_id": "tide", "timestamp": "2026-11-11T08:00:00", "weight": 1.0, "type": "save"}],
    "ben": [{"song_id": "moss", "timestamp": None, "weight": 1, "type": "like"}]}, "last_update": "2026-11-11T09:00:00"}

def test_json_is_imported_once_and_left_alone(tmp_path):
    file = tmp_path / "history.json"
    file.write_text(json.dumps(OLD), encoding="utf-8-sig")
    before = file.read_bytes()
    for _ in range(2):
        history = UserHistoryManager(file)
        assert len(history.store.read()) == 4
        assert history.get_user_interactions("ana", as_of="2026-11-16")[Col.SONG].tolist() == ["moss", "tide"]
        assert not history.should_update_models("2026-11-15") and history.should_update_models("2026-11-16")
    history.add_interaction("ana", "dusk", "2026-11-12")
    assert file.read_bytes() == before and len(UserHistoryManager(file).store.read()) == 5
    old = json.loads(json.dumps(OLD))
    old["user_history"]["cleo"] = [{"song_id": "reed", "timestamp": "2026-11-12T08:00:00", "weight": 1.0, "type": "play"}]
    file.write_text(json.dumps(old))
    assert UserHistoryManager(file).user_ids == ["ana", "ben", "cleo"] and len(history.store.read()) == 6

@pytest.mark.parametrize("content", [
    b"", b"{", json.dumps(OLD).encode()[:150], b"\xff\xfe{}", b"[]", b"{}", b'{"user_history": [1]}', b'{"user_history": {"a": ["b"]}}',
    b'{"user_history": {}, "last_update": "soon"}', b'{"user_history": {"a": {"song_id": "b"}}}'])
def test_a_damaged_json_is_reported(tmp_path, content):
    file = tmp_path / "history.json"
    file.write_bytes(content)
    with pytest.raises(LogError, match="history.json"):
        UserHistoryManager(file)
    assert file.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["history.json"]

def test_a_number_beyond_every_float_is_named(tmp_path):
    file = tmp_path / "history.json"
    file.write_text('{"user_history": {"ana": [{"song_id": "moss"}, {"song_id": "tide", "weight": 1' + "0" * 400 + "}]}}")
    with pytest.raises(TableError, match="row 2, column 'weight'"):
        UserHistoryManager(file)
    assert not (tmp_path / "history.db").exists()

def test_a_bad_row_in_the_json_is_named(tmp_path):
    file = tmp_path / "history.json"
    file.write_text('{"user_history": {"ana": [{"song_id": "moss"}, {"song_id": "tide", "weight": -1}, {"timestamp": 1763280000}]}}')
    with pytest.raises(TableError, match="history.json: 3 problem") as e:
        UserHistoryManager(file)
    assert "row 2, column 'weight', value -1" in str(e.value)
    assert not (tmp_path / "history.db").exists()

# the store -----------------------------------------------------------------------------------------------------------

def _append(path, worker, n):
    store = EventStore(path)
    for k in range(n):
        store.append_one(f"user{worker}", f"song{k}", pd.Timestamp(MONDAY + k, unit="us", tz="UTC"))

def test_eight_processes_lose_nothing(tmp_path):
    context = multiprocessing.get_context("forkserver") # eight imports would take longer than the test
    context.set_forkserver_preload(["sunorecsys.data.log"])
    path = tmp_path / "history.db" # all eight find no file and make it
    workers = [context.Process(target=_append, args=(path, w, 1_000)) for w in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(300)
    assert [w.exitcode for w in workers] == [0] * 8
    got = EventStore(path).read()
    assert len(got) == 8_000
    assert (got.groupby(Col.USER)[Col.SONG].nunique() == 1_000).all() and got[Col.USER].nunique() == 8

@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_store_survives_a_fork(tmp_path):
    store = EventStore(tmp_path / "history.db")
    store.append_one("parent", "song")
    children = []
    for k in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for i in range(50):
                    store.append_one(f"child{k}", f"song{i}")
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    for i in range(50):
        store.append_one("parent", f"song{i}")
    assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in children] == [0] * 4
    assert len(store.read()) == 251

def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path):
    code = f"""
from sunorecsys.data.log import EventStore
s = EventStore({str(tmp_path / 'history.db')!r})
k = 0
while True:
    s.append_one("ana-user", f"song{{k}}"); k += 1; print(k, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for _ in range(100):
        acknowledged = int(child.stdout.readline())
    child.kill()
    acknowledged += len(child.stdout.read().split())
    child.wait()
    got = EventStore(tmp_path / "history.db").read()
    assert len(got) in (acknowledged, acknowledged + 1) # the last one may be written and not yet announced
    assert got[Col.SONG].tolist() == [f"song{k}" for k in range(len(got))]

def test_appends_are_durable_and_atomic(tmp_path):
    store = EventStore(tmp_path / "history.db")
    with store.connect(write=True) as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 2 # FULL
        assert c.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
    with pytest.raises(TableError, match="row 2, column 'weight'"):
        store.append(pd.DataFrame({"user_id": ["a", "b"], "song_id": ["x", "y"], "weight": [1, -1]}))
    with pytest.raises(RuntimeError, match="stop"):
        with store.connect(write=True) as c:
            c.execute(log.EVENTS.insert(), {Col.USER: "a", Col.SONG: "x", Col.TYPE: "play", Col.WEIGHT: 1.0})
            raise RuntimeError("stop")
    assert len(store.read()) == 0

@pytest.mark.parametrize("row", [
    {"user_id": ""}, {"user_id": None}, {"song_id": "nan"}, {"song_id": float("nan")}, {"user_id": "x" * 300}, {"weight": -1.0},
    {"weight": float("nan")}, {"weight": float("inf")}, {"weight": "loud"}, {"interaction_type": "hum"}, {"timestamp": "yesterday"},
    {"timestamp": pd.Timestamp.now("UTC") + pd.Timedelta(days=2)}, {"timestamp": 1763280000}])
def test_append_one_refuses_what_the_door_refuses(tmp_path, row):
    store = EventStore(tmp_path / "history.db")
    if row.get("weight") == row.get("weight"): # a missing weight becomes the default 1 at the door
        with pytest.raises(TableError, match=next(iter(row))):
            store.append_one(**({"user_id": "ana", "song_id": "moss"} | row))
        assert len(store.read()) == 0

def test_append_one_reads_odd_but_good_values_like_the_door(tmp_path):
    store = EventStore(tmp_path / "history.db")
    day = pd.Timestamp("2026-11-16")
    tokyo = utc(day).tz_convert("Asia/Tokyo")
    for user, t in (("ana", "2026-11-16T02:00+02:00"), (" ana ", day), ("ana", tokyo), ("ana", day.to_pydatetime())):
        store.append_one(user, 7, t)
    store.append_one("ana", "7", pd.NaT)
    got = store.read()
    assert set(got[Col.USER]) == {"ana"} and set(got[Col.SONG]) == {"7"}
    assert got[Col.TIME].isna().tolist() == [True, False, False, False, False]
    assert (got[Col.TIME].dropna() == utc("2026-11-16")).all() and got[Col.RECORDED].notna().all()

@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.tuples(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=9).map(lambda s: f"<{s}>"),
    st.floats(0, 1e300), st.one_of(st.none(), st.integers(-(10**15), MONDAY))), min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory, values):
    "Ids with quotes and control characters, weights to the last bit, times to the microsecond; from both halves of the log."
    folder = tmp_path_factory.mktemp("log")
    users, weights, at = zip(*values, strict=True)
    at = pd.to_datetime(pd.array(at, dtype="Int64"), unit="us", utc=True)
    frame = plays(user_id=users, song_id=users, timestamp=at, weight=weights)[LOG_SCHEMA.names]
    EventStore(folder / "history.db").append(frame)
    append_partition(folder / "log", frame)
    db, files = read_log((None, folder / "history.db")), read_log((folder / "log", None))
    pd.testing.assert_frame_equal(db.drop(columns=Col.RECORDED), files.drop(columns=Col.RECORDED))
    want = frame.assign(t=frame[Col.TIME].fillna(pd.Timestamp(-(10**15) - 1, unit="us", tz="UTC"))).sort_values("t", kind="stable")
    pd.testing.assert_frame_equal(files, want.drop(columns="t").reset_index(drop=True))

def big_store(path, n=5_000):
    EventStore(path).append(pd.DataFrame({"user_id": [f"user{k % 50}" for k in range(n)], "song_id": [f"song{k}" for k in range(n)]}))
    return path.read_bytes()

@pytest.mark.parametrize("kind", ["empty", "short", "cut", "text", "header"])
def test_a_damaged_database_is_reported_and_left_alone(tmp_path, kind):
    raw, bad = big_store(tmp_path / "good.db"), tmp_path / "history.db"
    half = 4096 * (len(raw) // 8192)
    content = {"empty": b"", "short": raw[:100], "cut": raw[:half], "text": b"user,song\n" * 999, "header": b"x" * 100 + raw[100:]}[kind]
    bad.write_bytes(content)
    for use in (lambda: EventStore(bad), lambda: read_log(Workspace(tmp_path)), lambda: UserHistoryManager(bad),
                lambda: UserHistoryManager(workspace=tmp_path).add_interaction("ana", "moss")):
        with pytest.raises(LogError, match="history.db"):
            use()
    assert bad.read_bytes() == content

def test_a_lost_page_is_reported_or_does_not_matter(tmp_path):
    "Pages of an index are not read by a full scan; a page of rows that is gone must be noticed."
    raw, bad = big_store(tmp_path / "good.db"), tmp_path / "history.db"
    want, noticed = EventStore(tmp_path / "good.db").read(), 0
    for page in range(1, len(raw) // 4096, 3):
        bad.write_bytes(raw[:4096 * page] + bytes(4096) + raw[4096 * (page + 1):])
        try:
            pd.testing.assert_frame_equal(EventStore(bad).read(), want)
        except LogError as e:
            noticed += "history.db" in str(e)
    assert noticed > len(raw) // 4096 // 3 // 2

def test_a_database_of_somebody_else_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "history.db") as c:
        c.execute("create table other(x)")
    with pytest.raises(LogError, match="no such table"):
        EventStore(tmp_path / "history.db")

def test_a_locked_database_is_reported_in_the_end(tmp_path, monkeypatch):
    EventStore(tmp_path / "history.db").append_one("ana-user", "moss")
    holder = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    store = EventStore(tmp_path / "history.db")
    with store.connect() as c:
        c.exec_driver_sql("PRAGMA busy_timeout=50")
    with pytest.raises(LogError, match="locked"):
        store.append_one("ana-user", "moss")
    assert len(store.read()) == 1 # readers do not wait
    holder.close()

def test_the_sql_of_other_databases_compiles():
    for name, dialect in (("postgresql", postgresql.dialect()), ("mysql", mysql.dialect())):
        insert = str(log._insert(name).compile(dialect=dialect))
        assert "ON CONFLICT DO NOTHING" in insert if name == "postgresql" else "INSERT IGNORE" in insert
        query = sa.select(*log._as_json(name, LOG_SCHEMA.names)).where(log._wanted(5, True), next(log._pieces(9, ["ana"])))
        assert ("json_agg" if name == "postgresql" else "json_arrayagg") in str(query.compile(dialect=dialect)).lower()
    assert log._from_json(Col.USER, None).to_pylist() == [] and log._from_json(Col.WEIGHT, [1.5]).to_pylist() == [1.5]

def test_many_users_at_once(tmp_path):
    store = EventStore(tmp_path / "history.db")
    store.append(pd.DataFrame({"user_id": [f"user{k}" for k in range(3_000)], "song_id": ["moss"] * 3_000}))
    for n in (0, 1, 500, 2_500):
        assert len(store.read(users=[f"user{k}" for k in range(n)])) == n
    assert len(store.read(users=["user1", "user1", "it's nobody"])) == 1

# partitions and the union --------------------------------------------------------------------------------------------

def test_partitions_are_written_once(tmp_path):
    frame = plays(user_id=["a", "b"], song_id=["x", "y"], timestamp=["2026-11-10", None])
    path = append_partition(tmp_path, frame)
    stat = path.stat()
    assert append_partition(tmp_path, frame.assign(recorded_at=utc("2026-11-11"))) == path
    assert path.stat() == stat and [p.name for p in tmp_path.iterdir()] == [path.name]
    named = append_partition(tmp_path, frame, "harvest")
    with pytest.raises(FileExistsError, match="harvest.parquet"):
        append_partition(tmp_path, frame.iloc[::-1], "harvest")
    assert len(read_log((named.parent, None))) == 4
    for bad in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="file name"):
            append_partition(tmp_path, frame, bad)

def test_extra_columns_stay_in_the_file_and_out_of_the_log(tmp_path):
    path = append_partition(tmp_path, plays(user_id=["a"], song_id=["x"], session=["s1"]))
    assert "session" in pd.read_parquet(path) and list(read_log((tmp_path, None))) == LOG_SCHEMA.names

def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(log.pq, "write_table", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        append_partition(tmp_path, plays(user_id=["a"], song_id=["x"]))
    assert list(tmp_path.iterdir()) == [] and len(read_log((tmp_path, None))) == 0

@pytest.mark.parametrize("content", [b"", b"PAR1", b"user_id,song_id\na,b\n", None, "flip"])
def test_a_damaged_partition_is_reported(tmp_path, content):
    n = 3_000
    frame = plays(user_id=[f"u{k}" for k in range(n)], song_id=[f"s{k * 7 % n}" for k in range(n)])
    path = append_partition(tmp_path / "log", frame, "autumn")
    raw = path.read_bytes()
    bad = raw[:-200] if content is None else raw[:200] + bytes([raw[200] ^ 1]) + raw[201:] if content == "flip" else content
    path.write_bytes(bad)
    with pytest.raises(LogError, match="autumn.parquet"):
        read_log(Workspace(tmp_path))
    assert path.read_bytes() == bad
    if content not in ("flip",):
        with pytest.raises(LogError, match="autumn.parquet"):
            append_partition(tmp_path / "log", plays(user_id=["a"], song_id=["x"]), "autumn")

def test_a_foreign_parquet_file_is_reported(tmp_path):
    pd.DataFrame({"user": ["a"], "song": ["x"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(LogError, match="other.parquet"):
        read_log((tmp_path, None))

@settings(max_examples=25, deadline=None)
@given(data=st.lists(ROW, max_size=25), before=st.none() | st.integers(0, 10))
def test_the_union_is_ordered_and_has_each_event_once(tmp_path_factory, data, before):
    folder = tmp_path_factory.mktemp("union")
    rows = [(part, f"song{song}", None if day is None else pd.Timestamp("2026-11-01", tz="UTC") + pd.Timedelta(days=day),
             None if event is None else f"event{event}") for part, song, day, event in data]
    for part in (0, 1, 2):
        mine = [r[1:] for r in rows if r[0] == part]
        songs, at, ids = ([r[k] for r in mine] for k in range(3))
        frame = plays(user_id=["ana"] * len(mine), song_id=songs, timestamp=at, event_id=ids)
        if part == 2: # within the database the first of an event stays, so give it one of each
            frame = frame[~(frame[Col.EVENT].duplicated() & frame[Col.EVENT].notna())]
            rows = [r for r in rows if r[0] != 2] + [(2, *r) for r in zip(frame[Col.SONG], frame[Col.TIME], frame[Col.EVENT], strict=True)]
            EventStore(folder / "history.db").append(frame)
        else:
            append_partition(folder / "log", frame, f"part{part}")
    limit = None if before is None else pd.Timestamp("2026-11-01", tz="UTC") + pd.Timedelta(days=before)
    want, seen = [], set()
    for _, song, t, event in sorted(sorted(rows, key=lambda r: r[0]), key=lambda r: -1 if pd.isna(r[2]) else r[2].value):
        if (limit is not None and not pd.isna(t) and t >= limit) or (not pd.isna(event) and event in seen):
            continue
        seen.add(event)
        want.append(song)
    got = read_log(Workspace(folder), before=limit)
    assert got[Col.SONG].tolist() == want
    pd.testing.assert_series_equal(got.dtypes, plays(user_id=["a"], song_id=["b"]).dtypes)

def test_filters_are_the_same_in_both_halves(tmp_path):
    frame = plays(user_id=list("aabbc"), song_id=list("vwxyz"), timestamp=["2026-11-10", None, "2026-11-12", "2026-11-13", "2026-11-14"],
                  interaction_type=["play", "like", "skip", "play", "play"], weight=[1, 1, 1, 0, 2])
    EventStore(tmp_path / "history.db").append(frame)
    append_partition(tmp_path / "log", frame)
    for kw, want in (({"before": "2026-11-12"}, "wv"), ({"users": ["b", "c"]}, "xyz"), ({"positive": True}, "wvz"),
                     ({"before": "2026-11-14", "users": ["a", "c"], "positive": True}, "wv"), ({"users": []}, "")):
        for half in ((tmp_path / "log", None), (None, tmp_path / "history.db")):
            assert "".join(read_log(half, **kw)[Col.SONG]) == want, (half, kw)
    lean = log.log_table(Workspace(tmp_path), columns=[Col.SONG])
    assert lean.schema.names == [Col.SONG] and isinstance(lean, pa.Table) and len(lean) == 10

def test_an_absent_log_is_empty(tmp_path):
    assert len(read_log(Workspace(tmp_path / "nothing"))) == 0
    assert not Path(tmp_path / "nothing").exists()
