"""Writes what a fleet's hosts would: objects with records, a few signatures on many hosts.

The same seed makes the same fleet. Signatures are as frequent as words (Zipf). One crash in three
repeats the last one on its host within seconds: a service in a crash loop. One in ten arrives in
two revisions, in two objects: before and after its analysis.
"""

import bisect
import io
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import zstandard

from crashd.domain.crash.model import (
    Capture,
    Core,
    Crash,
    Disposition,
    Engine,
    Kind,
    Mode,
    State,
    build_id_text,
    time_text,
)
from crashd.domain.fleet.hostid import host_id
from crashd.domain.fleet.keys import core_key, records_key
from crashd.domain.fleet.lines import FleetFiles, Line, build_line

DAY_NS = 86400 * 10**9
VERSIONS = ("2026.9", "2026.10", "2026.11")
_REGRESSION = -1
"""The rarest bug: the last version has made it frequent."""
ZONES = ("fra", "iad", "nrt", "syd")
_SIGNALS = (11, 6, 8, 7, 4)
_ID = build_id_text(1_700_000_000 * 10**9, "b" * 32, 4194301, 36**7 * 25)
_MARKS = {
    "boot": b"b" * 32,
    "pid": b"4194301",
    "host": b"@HOST@",
    "core": b"cores/v1/" + b"0" * 32 + b"/" + _ID.encode() + b".core.zst",
    "time": time_text(1_700_000_000 * 10**9).encode(),
    "time_ns": b"1700000000000000000",
    "revision": b"4611686018427387904",
    "labels": b'"labels":{}',
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the fleet is."""

    hosts: int
    crashes: int
    signatures: int = 2000
    days: int = 7
    seed: int = 1
    object_lines: int = 12
    """Lines of an object on average."""
    end_ns: int = 0


@dataclass(slots=True)
class Written:
    """What was written, to compare an index with."""

    crashes: int = 0
    records: int = 0
    objects: int = 0
    size_bytes: int = 0
    by_signature: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Bug:
    signature: str
    line: bytes
    early: bytes
    """Before its analysis."""


def write_fleet(plan: Plan, bucket: Path) -> Written:
    """Write all objects of a fleet below a directory."""
    chance = random.Random(plan.seed)
    bugs = [_make_bug(number, chance) for number in range(plan.signatures)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(plan.signatures)))
    done = Written()
    left = plan.crashes
    for number in range(plan.hosts):
        # some hosts crash ten times as often as others
        mean = left / (plan.hosts - number)
        count = left if number == plan.hosts - 1 else min(left, int(mean * chance.choice(_LOADS)))
        left -= count
        _write_host(plan, bucket, number, count, bugs, weights, chance, done)
    return done


_LOADS = (0.2, 0.4, 0.6, 0.8, 1, 1, 1.2, 1.6, 1.2, 2)


def simulated_host(number: int) -> str:
    """Return the id of a host of the fleet."""
    return host_id(f"{number + 1:032x}")


class Live:
    """Hosts of a plan that write what crashes now."""

    def __init__(self, plan: Plan, bucket: Path) -> None:
        self._bucket = bucket
        self._chance = random.Random(plan.seed + 1)
        self._bugs = [
            _make_bug(number, self._chance) for number in range(min(100, plan.signatures))
        ]
        self._sequence = 1 << 40
        self._written = Written()

    def write(self, number: int, count: int) -> str:
        """Write one object with so many crashes of a host; return its name."""
        host, boot, now_ns = simulated_host(number), f"{number * 7919 + 1:032x}", time.time_ns()
        labels = f'"labels":{{"version":"{VERSIONS[-1]}","zone":"{ZONES[number % 4]}"}}'.encode()
        name = f"host-{number:05d}".encode()
        chunk = [
            _lines(self._chance.choice(self._bugs), host, boot, now_ns, labels, name, self._chance)
            for _ in range(count)
        ]
        self._sequence += 1
        key = records_key(host, now_ns, boot, self._sequence)
        # whole at once, as in a bucket: the indexer is looking
        part = self._bucket / "part"
        _write_object(part, key, [made[-1] for made in chunk], self._written)
        target = self._bucket / key
        target.parent.mkdir(parents=True, exist_ok=True)
        (part / key).rename(target)
        return key


def _version(plan: Plan, number: int, time_ns: int) -> str:
    """Return what a host ran: versions are rolled out one after the other, host by host."""
    span_ns = plan.days * DAY_NS // len(VERSIONS)
    late_ns = number % 10 * span_ns // 20
    passed_ns = time_ns - late_ns - (plan.end_ns - plan.days * DAY_NS)
    return VERSIONS[min(max(passed_ns // span_ns, 0), len(VERSIONS) - 1)]


def _write_host(
    plan: Plan,
    bucket: Path,
    number: int,
    count: int,
    bugs: list[_Bug],
    weights: list[float],
    chance: random.Random,
    done: Written,
) -> None:
    host, boot = simulated_host(number), f"{number * 7919 + 1:032x}"
    zone = ZONES[number % 4]
    times = sorted(plan.end_ns - chance.randrange(plan.days * DAY_NS) for _ in range(count))
    lines: list[tuple[int, bytes]] = []
    bug, last_ns = bugs[0], 0
    for time_ns in times:
        if last_ns and chance.random() < 0.33:
            time_ns = min(last_ns + chance.randrange(10**9, 20 * 10**9), plan.end_ns)
        elif _version(plan, number, time_ns) == VERSIONS[-1] and chance.random() < 0.05:
            bug = bugs[_REGRESSION]
        else:
            bug = bugs[bisect.bisect_left(weights, chance.random() * weights[-1])]
        last_ns = time_ns
        done.by_signature[bug.signature] = done.by_signature.get(bug.signature, 0) + 1
        version = _version(plan, number, time_ns)
        labels = f'"labels":{{"version":"{version}","zone":"{zone}"}}'.encode()
        made = _lines(bug, host, boot, time_ns, labels, f"host-{number:05d}".encode(), chance)
        lines += made
        done.crashes += 1
        done.records += len(made)
    lines.sort()
    start = sequence = 0
    while start < len(lines):
        size = min(256, max(1, int(chance.expovariate(1 / plan.object_lines)) + 1))
        chunk = lines[start : start + size]
        start += size
        sequence += 1
        _write_object(bucket, records_key(host, chunk[-1][0], boot, sequence), chunk, done)


def _write_object(bucket: Path, key: str, chunk: list[tuple[int, bytes]], done: Written) -> None:
    data = zstandard.ZstdCompressor(level=1).compress(b"".join(line + b"\n" for _, line in chunk))
    path = bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    done.objects += 1
    done.size_bytes += len(data)


def _lines(
    bug: _Bug,
    host: str,
    boot: str,
    time_ns: int,
    labels: bytes,
    name: bytes,
    chance: random.Random,
) -> list[tuple[int, bytes]]:
    pid = chance.randrange(1000, 4000000)
    crash_id = build_id_text(time_ns, boot, pid, chance.randrange(26 * 36**7))
    values = {
        _MARKS["core"]: core_key(host, crash_id, encrypted=False).encode(),
        _ID.encode(): crash_id.encode(),
        _MARKS["boot"]: boot.encode(),
        _MARKS["pid"]: b"%d" % pid,
        _MARKS["host"]: name,
        _MARKS["time"]: time_text(time_ns).encode(),
        _MARKS["time_ns"]: b"%d" % time_ns,
        _MARKS["labels"]: labels,
    }
    texts = [(time_ns, bug.early)] if chance.random() < 0.1 else []
    texts.append((time_ns + 4 * 10**9, bug.line))
    made = []
    for revision, text in texts:
        for mark, value in values.items():
            text = text.replace(mark, value)
        made.append((revision, text.replace(_MARKS["revision"], b"%d" % revision)))
    return made


def _make_bug(number: int, chance: random.Random) -> _Bug:
    program = f"service-{number % 300:03d}"
    signature = f"p2-{random.Random(number).getrandbits(64):016x}"
    crash = Crash(
        id=_ID,
        kind=Kind.PROCESS,
        state=State.COMPLETE,
        time_ns=1_700_000_000 * 10**9,
        boot_id="b" * 32,
        hostname=_MARKS["host"],
        token=f"{number:032x}",
        pid=4194301,
        tid=4194301,
        uid=990,
        gid=990,
        dumpable=1,
        signal=_SIGNALS[number % len(_SIGNALS)],
        si_code=1,
        fault_address=number * 8,
        comm=program.encode()[:15],
        exe=f"/usr/lib/{program}/{program}".encode(),
        argv=(program.encode(), b"--config", b"/etc/service.toml"),
        cwd=b"/",
        root=b"/",
        unit=f"{program}.service",
        slice="system.slice",
        cgroup=f"/system.slice/{program}.service",
        build_id=f"{number % 600:040x}",
        capture=Capture(Mode.PIPE, Engine.MEMORY, Disposition.FULL, hold_ns=4_000_000),
        core=Core("core.zst", 30 << 20, 3 << 20, 9 << 20, 30 << 20, complete=True),
        environ=(b"PATH=/usr/bin:/bin", b"LANG=C.UTF-8", b"INVOCATION_ID=0123456789abcdef"),
        status=b"Name:\tservice\nUmask:\t0022\nGroups:\t990\nCapEff:\t0000000000000000\n",
    )
    files = FleetFiles(_MARKS["core"].decode(), None, 3 << 20)
    early = build_line(Line(_ID, 1 << 62, crash, {}, "0.1.0", files))
    frames = tuple(
        {
            "function": f"frame_{number}_{i}",
            "module": crash.exe.decode(),
            "offset": 16 * i,
            "line": i,
        }
        for i in range(chance.randrange(4, 14))
    )
    explained = replace(
        crash,
        signature=signature,
        title=f"SIGSEGV in frame_{number}_0 ({program})",
        explanation="NULL pointer dereference: it read 8 bytes at an address near 0.",
        frames=frames,
        analysis={"state": "done", "seconds": 0.5, "time": "2026-11-20T10:00:00.000000Z"},
    )
    return _Bug(signature, build_line(Line(_ID, 1 << 62, explained, {}, "0.1.0", files)), early)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of one object."""
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    yield from data.splitlines()
