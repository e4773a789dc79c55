"""The reader of listings shows the same as the one of whole rows, and opens nothing for writing."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.cli.render import Table
from crashd.domain.crash.keys import RECORD_KEYS
from crashd.domain.crash.kinds import State
from crashd.domain.crash.model import Core, Crash, Kind, encode, to_json
from crashd.domain.crash.query import Query
from crashd.errors import IndexCorruptError, UnavailableError
from crashd.store.catalog import Catalog
from crashd.store.entry import create, prepare
from crashd.store.index import Index
from crashd.store.indexread import IndexReader
from crashd.store.paths import Paths
from crashd.store.recordread import read_plain
from tests.builders.crashes import build_crash
from tests.unit.cli.rows import HOSTILE, NGINX


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    prepare(paths)
    return paths


def crashes() -> list[Crash]:
    evicted = {"reason": "max_use", "time": "2026-11-23T05:02:09Z"}
    return [
        build_crash(1),
        build_crash(2, comm=HOSTILE, exe=b"/" + HOSTILE, title=HOSTILE.decode("utf-8", "replace")),
        build_crash(3, state=State.EVICTED, evicted=evicted, core=Core()),
        build_crash(4, kind=Kind.KERNEL, kernel={"release": "6.1.0"}, signal=None, exe=b""),
        build_crash(5, state=State.METADATA_ONLY, core=Core(), pid=None, uid=None, exe=b""),
        build_crash(6, title="SIGSEGV in prog6, f(): NULL read", comm=b"prog6", exe=b"/x/prog6"),
    ]


@pytest.mark.parametrize("width", [None, 80, 140])
def test_listing_looks_like_the_rows_themselves(paths: Paths, width: int | None) -> None:
    with Index.open(paths.index) as index:
        index.put(crashes())
    with IndexReader.open_readonly(paths.index) as reader:
        for query in (Query(), Query(limit=2), Query(("state=evicted",)), Query(kind="kernel")):
            tables = [
                list(Table(width, color=True, now_ns=0).lines(rows, legend=True))
                for rows in (reader.listing(query), reader.select(query, None))
            ]
            assert tables[0] == tables[1]
            assert len(tables[0]) > 1


def test_open_readonly_makes_no_index(paths: Paths) -> None:
    with pytest.raises(UnavailableError):
        IndexReader.open_readonly(paths.index)
    assert not paths.index.exists()
    paths.index.write_bytes(b"no database" * 1000)
    with pytest.raises(IndexCorruptError):
        IndexReader.open_readonly(paths.index)


def test_record_keys_are_those_of_every_record() -> None:
    for crash in (NGINX, *crashes()):
        assert set(to_json(crash)) - {"auxv", "auxv_base64"} >= RECORD_KEYS
    assert set(to_json(NGINX)) - {"auxv", "auxv_base64"} == RECORD_KEYS


@pytest.mark.parametrize("crash", crashes(), ids=lambda crash: crash.state + crash.kind)
def test_read_plain_is_what_the_catalog_says(paths: Paths, crash: Crash) -> None:
    with Index.open(paths.index) as index:
        create(paths, crash).close()
        index.put([crash])
        known = Catalog(paths, index).info(crash.id, None)
    plain = read_plain(paths.crashes, crash.id)
    assert plain is not None
    assert {key: known[key] for key in plain} == plain


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"{}",
        b'{"id": 5}',
        encode({**to_json(NGINX), "schema": 2}),
        encode({**to_json(NGINX), "id": "20261123t050209-5f0c77aa-1234-another0"}),
        encode({**to_json(NGINX), "core": {"path": "../../etc/passwd"}}),
        encode({**to_json(NGINX), "core": None}),
        encode({key: value for key, value in to_json(NGINX).items() if key != "threads"}),
    ],
)
def test_read_plain_leaves_what_is_not_plain_to_the_parser(paths: Paths, damage: bytes) -> None:
    create(paths, NGINX).close()
    (paths.crashes / NGINX.id / "crash.json").write_bytes(damage)
    assert read_plain(paths.crashes, NGINX.id) is None


def test_read_plain_follows_no_link(paths: Paths, tmp_path: Path) -> None:
    create(paths, replace(NGINX)).close()
    record = paths.crashes / NGINX.id / "crash.json"
    os.rename(record, tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    assert read_plain(paths.crashes, NGINX.id) is None
    assert read_plain(paths.crashes, "../../x") is None


@pytest.mark.parametrize("name", ["a b", "50%25", "what?mode=rw", "#1", "é", "\udcff", "a:b&c;d"])
def test_index_opens_below_any_name(tmp_path: Path, name: str) -> None:
    paths = Paths(tmp_path / name)
    prepare(paths)
    with Index.open(paths.index) as index:
        index.put([NGINX])
    with IndexReader.open_readonly(str(paths.index)) as reader:
        assert [row["id"] for row in reader.select(Query(), None)] == [NGINX.id]


def test_index_opens_below_a_link_and_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path / "real/root")
    paths.root.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/root")
    prepare(paths)
    Index.open(paths.index).close()
    monkeypatch.chdir(tmp_path)
    # what `..` means is the kernel's to say: link/.. is real, not tmp_path
    name = "link/../root/var/lib/crashd/index.sqlite"
    IndexReader.open_readonly(name).close()


@pytest.mark.parametrize(
    "change",
    [
        "time_ns = 'x'",
        "comm = 5",
        "exe = 'text'",
        "stored_bytes = 'x'",
        "doc = '5'",
        "doc = '{'",
        "doc = x'ff00'",
        "doc = printf('%.*c', 100000, '[')",
        'doc = \'{"id": 5, "time": "x"}\'',
        'doc = \'{"id": "x", "time": []}\'',
        "doc = json_set(doc, '$.core', 7)",
        "doc = json_set(doc, '$.kernel', json('[1]'))",
        "state = 'evicted', doc = '{'",
    ],
)
def test_rows_that_are_not_ours_are_damage(paths: Paths, change: str) -> None:
    with Index.open(paths.index) as index:
        index.put(crashes())
        index.run([(f"UPDATE crash SET {change}", ())])
    with IndexReader.open_readonly(paths.index) as reader:
        told = []
        for ask in (reader.listing, lambda q: reader.select(q, None), lambda q: [*reader.each(q)]):
            try:
                ask(Query())
            except IndexCorruptError as e:
                told.append(e)
        assert told and all("crashd wrote" in str(e) and "reindex" in str(e.hint) for e in told)


def test_times_that_are_not_ours_are_damage(paths: Paths) -> None:
    with Index.open(paths.index) as index:
        index.put(crashes())
        index.run([("UPDATE crash SET time_ns = 'x'", ())])
        with pytest.raises(IndexCorruptError, match="crashd wrote"):
            index.totals()
