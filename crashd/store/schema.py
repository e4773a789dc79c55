"""The index's schema, step by step: an index that an older crashd made is brought up to date.

crash            columns to match by, and `doc`: the JSON of `crashctl list`
signature_count  how many crashes have a signature        }
usage            entries and stored bytes of each kind    } kept by triggers: never
record_usage     bytes of each kind's records             } counted by a scan
past             how many crashes there were whose rows are gone: what was counted stays so
"""

from collections.abc import Sequence
from typing import Final

from crashd.store.selection import LISTED

_COLUMNS_1: Final = {
    "id": "TEXT NOT NULL UNIQUE",
    "short": "TEXT NOT NULL",
    "token": "TEXT NOT NULL",
    "kind": "TEXT NOT NULL",
    "state": "TEXT NOT NULL",
    "time_ns": "INTEGER NOT NULL",
    "disposition": "TEXT NOT NULL",
    "boot_id": "TEXT NOT NULL",
    "hostname": "BLOB",
    "pid": "INTEGER",
    "tid": "INTEGER",
    "uid": "INTEGER",
    "gid": "INTEGER",
    "owner_uid": "INTEGER",
    "signal": "INTEGER",
    "signal_name": "TEXT",
    "si_code": "INTEGER",
    "fault_address": "TEXT",
    "comm": "BLOB",
    "exe": "BLOB",
    "cmdline": "BLOB",
    "cwd": "BLOB",
    "unit": "TEXT",
    "user_unit": "TEXT",
    "slice": "TEXT",
    "container_id": "TEXT",
    "build_id": "TEXT",
    "signature": "TEXT",
    "title": "TEXT",
    "explanation": "TEXT",
    "pinned": "INTEGER NOT NULL",
    "stored_bytes": "INTEGER NOT NULL",
    "doc": "TEXT NOT NULL",
}
_COLUMNS_2: Final = {"sequence": "INTEGER", "record_bytes": "INTEGER"}

_SCHEMA_1 = [
    "CREATE TABLE crash (" + ", ".join(f"{name} {kind}" for name, kind in _COLUMNS_1.items()) + ")",
    "CREATE INDEX crash_time ON crash (time_ns, id)",
    "CREATE INDEX crash_short ON crash (short)",
    "CREATE INDEX crash_token ON crash (token)",
    "CREATE INDEX crash_capturing ON crash (id) WHERE state = 'capturing'",
    *(f"CREATE INDEX crash_{name} ON crash ({name}, time_ns, id)" for name in LISTED),
    "CREATE TABLE signature_count (signature TEXT PRIMARY KEY, count INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE usage (kind TEXT PRIMARY KEY, entries INTEGER NOT NULL, bytes INTEGER NOT NULL)"
    " WITHOUT ROWID",
]
_ADD = """
    INSERT INTO usage VALUES (new.kind, 1, new.stored_bytes)
        ON CONFLICT (kind) DO UPDATE SET entries = entries + 1, bytes = bytes + new.stored_bytes;
    INSERT INTO signature_count SELECT new.signature, 1 WHERE new.signature IS NOT NULL
        ON CONFLICT (signature) DO UPDATE SET count = count + 1;
"""
_SUBTRACT = """
    UPDATE usage SET entries = entries - 1, bytes = bytes - old.stored_bytes WHERE kind = old.kind;
    UPDATE signature_count SET count = count - 1 WHERE signature = old.signature;
"""
_SCHEMA_1 += [
    f"CREATE TRIGGER crash_added AFTER INSERT ON crash BEGIN {_ADD} END",
    f"CREATE TRIGGER crash_removed AFTER DELETE ON crash BEGIN {_SUBTRACT} END",
    "CREATE TRIGGER crash_changed AFTER UPDATE OF kind, signature, stored_bytes ON crash"
    f" BEGIN {_SUBTRACT} {_ADD} END",
]
_ADD_RECORD = """
    INSERT INTO record_usage VALUES (new.kind, coalesce(new.record_bytes, 0))
        ON CONFLICT (kind) DO UPDATE SET bytes = bytes + coalesce(new.record_bytes, 0);
"""
_SUBTRACT_RECORD = """
    UPDATE record_usage SET bytes = bytes - coalesce(old.record_bytes, 0) WHERE kind = old.kind;
"""
_SCHEMA_2 = [
    *(f"ALTER TABLE crash ADD COLUMN {name} {kind}" for name, kind in _COLUMNS_2.items()),
    # what is not known is in no index: most crashes have no container, and no user's unit
    *(
        statement
        for name in LISTED
        if name != "kind"
        for statement in (
            f"DROP INDEX crash_{name}",
            f"CREATE INDEX crash_{name} ON crash ({name}, time_ns, id) WHERE {name} IS NOT NULL",
        )
    ),
    "CREATE TABLE record_usage (kind TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX crash_core ON crash (id) WHERE stored_bytes > 0",
    "CREATE INDEX crash_unmeasured ON crash (id) WHERE record_bytes IS NULL",
    f"CREATE TRIGGER record_added AFTER INSERT ON crash BEGIN {_ADD_RECORD} END",
    f"CREATE TRIGGER record_removed AFTER DELETE ON crash BEGIN {_SUBTRACT_RECORD} END",
    "CREATE TRIGGER record_changed AFTER UPDATE OF kind, record_bytes ON crash"
    f" BEGIN {_SUBTRACT_RECORD} {_ADD_RECORD} END",
]
PAST_UNITS_MAX = 1000
_PAST_ADD = "ON CONFLICT (what, name) DO UPDATE SET count = count + 1;"
_SCHEMA_3 = [
    "CREATE TABLE past (what TEXT, name TEXT, count INTEGER NOT NULL, PRIMARY KEY (what, name))"
    " WITHOUT ROWID",
    f"""CREATE TRIGGER crash_past AFTER DELETE ON crash WHEN old.state != 'capturing' BEGIN
    INSERT INTO past VALUES ('disposition', old.kind || ' ' || old.disposition, 1) {_PAST_ADD}
    INSERT INTO past SELECT 'signal', ifnull(old.signal, ''), 1 WHERE old.kind = 'process'
        {_PAST_ADD}
    INSERT INTO past SELECT 'unit', CASE
            WHEN EXISTS (SELECT 1 FROM past WHERE what = 'unit' AND name = old.unit)
            OR (SELECT count(*) FROM past WHERE what = 'unit') < {PAST_UNITS_MAX}
            THEN ifnull(old.unit, '') ELSE '' END, 1 WHERE old.kind = 'process'
        {_PAST_ADD}
    END""",
]
MIGRATIONS: tuple[Sequence[str], ...] = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3)
"""Step N brings the schema from version N to N + 1 (PRAGMA user_version)."""

COLUMNS: Final = {**_COLUMNS_1, **_COLUMNS_2}
