"""The index's schema. An older crashd's index is rebuilt from the store, not migrated: it holds
nothing that the store does not, except `past`, which counts from 0 again.

crash            columns to match by, and `doc`: the JSON of `crashctl list`
signature_count  how many crashes have a signature        }
usage            entries and stored bytes of each kind    } kept by triggers: never
record_usage     bytes of each kind's records             } counted by a scan
past             counts of crashes whose rows are gone, so that totals never fall
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from typing import Final

_LISTED_TEXT = """
pid comm exe unit user_unit slice container_id signature owner_uid build_id signal kind
"""
LISTED = tuple(_LISTED_TEXT.split())
"""Columns with an index in the order of a listing: the newest N are read without sorting."""
VERSION: Final = 6
"""PRAGMA user_version: raised with each change of SCHEMA."""

COLUMNS: Final = {
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
    "root": "BLOB",
    "rlimit_core": "TEXT",  # up to 2**64 - 1
    "unit": "TEXT",
    "user_unit": "TEXT",
    "slice": "TEXT",
    "session": "TEXT",
    "cgroup": "TEXT",
    "container_id": "TEXT",
    "build_id": "TEXT",
    "package_name": "TEXT",
    "package_version": "TEXT",
    "signature": "TEXT",
    "title": "TEXT",
    "explanation": "TEXT",
    "pinned": "INTEGER NOT NULL",
    "stored_bytes": "INTEGER NOT NULL",
    "doc": "TEXT NOT NULL",
    "sequence": "INTEGER",
    "record_bytes": "INTEGER NOT NULL",
}
_ADD = """
    INSERT INTO usage VALUES (new.kind, 1, new.stored_bytes)
        ON CONFLICT (kind) DO UPDATE SET entries = entries + 1, bytes = bytes + new.stored_bytes;
    INSERT INTO signature_count SELECT new.signature, 1 WHERE new.signature IS NOT NULL
        ON CONFLICT (signature) DO UPDATE SET count = count + 1;
    INSERT INTO record_usage VALUES (new.kind, new.record_bytes)
        ON CONFLICT (kind) DO UPDATE SET bytes = bytes + new.record_bytes;
"""
_SUBTRACT = """
    UPDATE usage SET entries = entries - 1, bytes = bytes - old.stored_bytes WHERE kind = old.kind;
    UPDATE signature_count SET count = count - 1 WHERE signature = old.signature;
    UPDATE record_usage SET bytes = bytes - old.record_bytes WHERE kind = old.kind;
"""
PAST_UNITS_MAX = 1000
_PAST_ADD = "ON CONFLICT (what, name) DO UPDATE SET count = count + 1;"
SCHEMA: Final = (
    "CREATE TABLE crash (" + ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items()) + ")",
    "CREATE TABLE signature_count (signature TEXT PRIMARY KEY, count INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE usage (kind TEXT PRIMARY KEY, entries INTEGER NOT NULL, bytes INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE record_usage (kind TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE past (what TEXT, name TEXT, count INTEGER NOT NULL, PRIMARY KEY (what, name))"
    " WITHOUT ROWID",
    "CREATE INDEX crash_time ON crash (time_ns, id)",
    "CREATE INDEX crash_short ON crash (short)",
    "CREATE INDEX crash_token ON crash (token)",
    "CREATE INDEX crash_capturing ON crash (id) WHERE state = 'capturing'",
    "CREATE INDEX crash_core ON crash (id) WHERE stored_bytes > 0",
    "CREATE INDEX crash_kind ON crash (kind, time_ns, id)",
    # unknown values are in no index: most crashes have no container and no user unit
    *(
        f"CREATE INDEX crash_{name} ON crash ({name}, time_ns, id) WHERE {name} IS NOT NULL"
        for name in LISTED
        if name != "kind"
    ),
    f"CREATE TRIGGER crash_added AFTER INSERT ON crash BEGIN {_ADD} END",
    f"CREATE TRIGGER crash_removed AFTER DELETE ON crash BEGIN {_SUBTRACT} END",
    "CREATE TRIGGER crash_changed AFTER UPDATE OF kind, signature, stored_bytes, record_bytes"
    f" ON crash BEGIN {_SUBTRACT} {_ADD} END",
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
)
