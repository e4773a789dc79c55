"""What is fuzzed: each parser, with real bytes to begin from."""

import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import zstandard

from crashd.analysisresult import parse_log_report, parse_report
from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.script import UnreadableError
from crashd.analyzers.unwind386 import Unwinder
from crashd.cli.open.scratch import nameless_file
from crashd.cli.open.unbundle import parse_document, parse_sums, plan_layout, unpack_tar
from crashd.corehandler import pack
from crashd.domain.crash import cgroup, procfs
from crashd.domain.crash import losses as kernellog
from crashd.domain.crash.boundedrecord import LEAST_BYTES, METADATA_BYTES, MINI_BYTES, bounded
from crashd.domain.crash.coredumpsock import parse_request
from crashd.domain.crash.coremeta import CoreMeta, parse_fields
from crashd.domain.crash.match import parse_term
from crashd.domain.crash.model import Crash, encode, from_json, to_json
from crashd.domain.crash.timestamp import parse_time
from crashd.domain.elf import elfcore, memorymap
from crashd.domain.elf.cfi import find_rules
from crashd.domain.elf.ehframe import UnwindTable
from crashd.domain.elf.memorymap import DoubtError
from crashd.domain.elf.vmlinux import parse_vmlinux
from crashd.domain.elf.zstdframes import parse_block_header, parse_frame_header
from crashd.domain.kdump import conf as kdumpconf
from crashd.domain.kdump.compressed import find_wrapper, unwrap
from crashd.domain.kdump.crashkernel import parse_crashkernel
from crashd.domain.kdump.directory import classify, parse_directory_name
from crashd.domain.kdump.shellconf import parse_shell
from crashd.domain.kdump.vmcore import TAIL_SIZE, judge
from crashd.domain.kernellog.analyse import analyse
from crashd.domain.kernellog.printkring import Memory, parse_numbers, read_log
from crashd.domain.kernellog.pstore import assemble, parse_part
from crashd.domain.tarheaders import BLOCK
from crashd.domain.text import printable
from crashd.domain.web import httphead
from crashd.errors import CrashdError
from crashd.store.corefile import unzstd
from tests.builders.bundle import MODULES, build_tar, bundle_members, seal_header, sum_up
from tests.builders.crashes import build_crash
from tests.builders.elfcore import CoreSegment, build_core
from tests.builders.kdumpdir import (
    KdumpFormat,
    build_elf_vmcore,
    directory,
    file,
    flatten,
    lz4_frame,
)
from tests.builders.printkring import STRUCTURED, Image, Ring, ring_numbers, write_structured
from tests.fuzz import native, scripts

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: takes any bytes, and raises CrashdError or `refuses`, which its caller expects."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    refuses: tuple[type[Exception], ...] = (CrashdError,)


def _unzip(*names: str) -> list[bytes]:
    return [gzip.decompress((DATA / name).read_bytes()) for name in names]


def _cores() -> list[bytes]:
    built = build_core(segments=[CoreSegment(0x1000, b"x" * 64)])
    return [*_unzip("core-x86_64.gz", "core-i386.gz"), built]


def _dumps() -> list[bytes]:
    whole = [KdumpFormat(version=version).build() for version in range(1, 7)]
    whole += [flatten(whole[-1]), build_elf_vmcore()]
    heads = [raw[:65536] for raw in _unzip("kdump/flattened-head.gz", "kdump/elf-head.gz")]
    packed = [gzip.compress(whole[-2]), lz4_frame(whole[-2])]
    return [*whole, *heads, *packed, zstandard.compress(whole[-2])]


def _logs() -> list[bytes]:
    # the reports in them, not the boot
    tails = [raw[-8192:] for raw in _unzip("dmesg/gpf.gz", "dmesg/bug.gz", "dmesg/softlockup.gz")]
    reports = (DATA / "dmesg/reports.txt").read_bytes().split(b"=== ")
    return [*tails, *reports]


def _judge(raw: bytes) -> object:
    return judge(raw, len(raw), raw[-TAIL_SIZE:], unzstd)


def _unwrap(raw: bytes) -> object:
    wrapper = find_wrapper(raw)
    return None if wrapper is None else unwrap(raw, wrapper, 1 << 20, unzstd)


def _vmlinux(raw: bytes) -> object:
    return parse_vmlinux(lambda offset, size: raw[offset : offset + size])


def _ring(raw: bytes) -> object:
    """Memory from address 0 on, and VMCOREINFO behind it."""
    memory, _, info = raw.rpartition(b"\0\0VMCOREINFO\0")

    def read(address: int, size: int) -> bytes:
        if address + size > len(memory):
            raise LookupError(address)
        return memory[address : address + size]

    return read_log(Memory(read, 64, "little"), parse_numbers(info))


def _rings() -> list[bytes]:
    seeds = []
    for structured in (False, True):
        image = Image()
        texts = [b"line %d" % number for number in range(20)]
        if structured:
            write_structured(image, texts, 256)
        else:
            Ring(image).write(texts)
        memory = bytes(image.bytes_at.get(at, 0) for at in range(max(image.bytes_at) + 1))
        numbers = STRUCTURED if structured else ring_numbers(64)
        lines = (
            f"{key}={value:x}\n" if key.startswith("SYMBOL") else f"{key}={value}\n"
            for key, value in numbers.items()
        )
        seeds.append(memory + b"\0\0VMCOREINFO\0" + "".join(lines).encode())
    return seeds


def _classify(raw: bytes) -> object:
    names = raw.split(b"\n")[:20]
    return classify(directory(names[0]), [file(name) for name in names[1:] if name])


def _meta(raw: bytes) -> object:
    return CoreMeta.from_fields(parse_fields(raw), 0)


def _record(raw: bytes) -> object:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return to_json(from_json(document))


def _bounded(raw: bytes) -> object:
    """A record whose parts are pieces of `raw`, some of them many times."""
    parts = raw.split(b"\0")
    sizes = (LEAST_BYTES, METADATA_BYTES, MINI_BYTES)
    crash = spread(parts, raw[0] // 4 if raw else 1)
    max_bytes = sizes[len(raw) % 3]
    after, encoded = bounded(crash, max_bytes)
    assert len(encoded) <= max_bytes, len(encoded)
    assert encode(to_json(from_json(json.loads(encoded)))) == encoded
    names = [item.name for item in fields(crash) if item.name not in ("capture", "warnings")]
    changed = [name for name in names if getattr(crash, name) != getattr(after, name)]
    note = after.warnings[-1] if after.warnings else ""
    assert all(name in note for name in changed), (changed, note)
    return encoded


def spread(parts: Sequence[bytes], times: int) -> Crash:
    """Build a crash out of what a process may have chosen."""

    def piece(number: int) -> bytes:
        return (parts[number % len(parts)] * times)[: 1 << 16]

    texts = [part.decode("utf-8", "surrogateescape")[:4096] for part in parts]
    return build_crash(
        exe=piece(0)[:4096],
        comm=piece(1)[:16],
        maps=piece(2),
        argv=tuple(part * times for part in parts)[:64],
        environ=(piece(3), *parts),
        mountinfo=piece(4),
        open_fds=piece(5),
        cgroup=texts[-1],
        title=texts[0],
        log=tuple(texts * 4),
        threads=tuple({"tid": 1, "name": text} for text in texts * 4),
        warnings=tuple(texts * 4),
        kernel={"path": texts[-1], "list": texts},
    )


def _bundle(raw: bytes) -> object:
    """An archive whose headers are sealed again, so that what is in them is reached."""
    blocks = [raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK)]
    sealed = (seal_header(b) if len(b) == BLOCK and b[257:262] == b"ustar" else b for b in blocks)
    stream = io.BytesIO(b"".join(sealed))
    with tempfile.TemporaryDirectory(prefix="crashd-fuzz-") as directory, nameless_file() as core:
        return unpack_tar(stream.read, Path(directory), core)[0]


def _bundles() -> list[bytes]:
    whole = sum_up(bundle_members())
    return [build_tar(whole), build_tar({f"files/1/{'n' * 200}": b"x", **whole})]


def _bundle_documents(raw: bytes) -> object:
    crash, _, modules = raw.partition(b"\n")
    return plan_layout(
        parse_document("crash.json", crash, 1000), parse_document("modules.json", modules, 1000), 64
    )


def _words(raw: bytes) -> object:
    text = raw.decode("utf-8", "surrogateescape")
    parse_term(text or "x")
    return parse_time(text, 10**18)


def _printable(raw: bytes) -> object:
    text = printable(raw)
    assert text.isprintable() or all(ord(c) >= 32 and c != "\x7f" for c in text)
    return text


def _proc(raw: bytes) -> object:
    procfs.parse_status(raw)
    procfs.parse_cmdline(raw)
    procfs.parse_core_limit(raw)
    return procfs.parse_environ(raw)


def _pstore(raw: bytes) -> object:
    parts = [parse_part("dmesg-efi-1", piece, 0) for piece in raw.split(b"\0")[:8]]
    return assemble(part for part in parts if part is not None)


def _zstd(raw: bytes) -> object:
    return parse_frame_header(raw), parse_block_header(raw)


def _own_proc() -> list[bytes]:
    names = ("status", "stat", "cmdline", "limits", "environ")
    return [Path("/proc/self", name).read_bytes() for name in names]


def _maps() -> list[bytes]:
    return [Path("/proc/self/smaps").read_bytes()[:9000]]


_ENTRIES = (
    "1400000000000000017a5200017c08011b0c0404880100001e0000001c000000e00f0000000100000041"
    "0e088502420d0502400ac50c0404410b"
)
"""A common information entry, and after its 24 bytes a function's, as compilers write them."""


def _rules(raw: bytes) -> object:
    return find_rules(lambda at, size: raw[at : at + size] if at >= 0 else b"", 24, 0x1043, 32)


class _Image:
    """The memory of an i386 process that has nothing but one entry of unwind information."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.head = SimpleNamespace(auxv={})

    def read(self, at: int, size: int) -> bytes:
        return self._raw[at : at + size] if at >= 0 else b""

    def word(self, at: int) -> int | None:
        raw = self.read(at, 4)
        return int.from_bytes(raw, "little") if len(raw) == 4 else None

    def is_code(self, at: int) -> bool:
        return at > 0

    def entry(self, pc: int) -> int:
        del pc
        return 24


def _walk(raw: bytes) -> object:
    image = _Image(raw)
    unwinder = Unwinder(cast("CoreImage", image), lambda _: cast("UnwindTable", image))
    return unwinder.walk({"eip": 0x1043, "esp": 8, "ebp": 16}, 64)


TARGETS = (
    Target("core head", elfcore.parse_head, _cores),
    Target("build id", elfcore.parse_build_id, _cores),
    Target("unwind rules", _rules, lambda: [bytes.fromhex(_ENTRIES)], (ValueError,)),
    Target("i386 stack", _walk, lambda: [bytes.fromhex(_ENTRIES)]),
    Target("exported symbols", scripts.exports, scripts.exports_seeds),
    Target("PHP stack", scripts.php, scripts.php_seeds, (UnreadableError,)),
    Target("Perl stack", scripts.perl, scripts.perl_seeds, (UnreadableError,)),
    Target("Ruby stack", scripts.ruby, scripts.ruby_seeds, (UnreadableError,)),
    Target("kernel dump", _judge, _dumps),
    Target("compressed dump", _unwrap, _dumps),
    Target("vmlinux", _vmlinux, lambda: [Path("/proc/self/exe").read_bytes()[:9000]]),
    Target("log in memory", _ring, _rings),
    Target("dump directory", _classify, lambda: [b"202601010101\ndump.202601010101\nx"]),
    Target("directory name", parse_directory_name, lambda: [b"h-2026-01-02-03:04:05", b"1" * 12]),
    Target("kernel log", analyse, _logs),
    Target("pstore", _pstore, lambda: [b"Panic#1 Part1\nx\0Oops#2 Part2\ny"]),
    Target(
        "kmsg record",
        lambda raw: (kernellog.parse_record(raw), kernellog.find_loss(raw)),
        lambda: [b"4,1,2,-;Pid 7(x) over core_pipe_limit", b"coredump: 7(a): |x pipe failed"],
    ),
    Target(
        "kdump-tools",
        kdumpconf.parse_kdump_tools,
        lambda: [(DATA / "kdump/kdump-tools.default").read_bytes()],
    ),
    Target("kdump.conf", kdumpconf.parse_kdump_conf, lambda: [b"path /x\nnfs a:/b\n"]),
    Target("sysconfig", kdumpconf.parse_sysconfig, lambda: [b'KDUMP_SAVEDIR="file:///x"\n']),
    Target("shell", parse_shell, lambda: [b"A=1\nif [ x ]; then B='$A'; fi\nC=\"$(id)\"\n"]),
    Target("crashkernel", parse_crashkernel, lambda: [b"crashkernel=1G-4G:64M,4G-:128M@16M"]),
    Target(
        "hand-over",
        _meta,
        lambda: [pack({"pid": b"7", "signal": b"11", "time": b"1", "comm": b"x"})],
    ),
    Target("native handler", native.run_handler, native.seeds),
    Target("socket request", parse_request, lambda: [bytes(range(48))]),
    Target(
        "record's size",
        _bounded,
        lambda: [b"/bin/x\0x\0" + b"\xff\x01\n'\"\\" * 40 + b"\0A=\xc3\xa4\0\xf0\x9f\x98\x80" * 9],
    ),
    Target("record", _record, lambda: [json.dumps(to_json(build_crash())).encode()]),
    Target("analysis", parse_report, lambda: [b'{"threads": [], "modules": []}']),
    Target(
        "log of a dump",
        parse_log_report,
        lambda: [b'{"log": "[    0.000000] a", "records": 1, "skipped": 0, "cut": false}'],
    ),
    Target("bundle", _bundle, _bundles),
    Target(
        "bundle's files",
        _bundle_documents,
        lambda: [b'{"exe": "/usr/bin/x"}\n' + json.dumps(MODULES).encode()],
    ),
    Target("bundle's sums", parse_sums, lambda: [sum_up(bundle_members())["SHA256SUMS"]]),
    Target("proc", _proc, _own_proc),
    Target(
        "maps",
        memorymap.parse_maps,
        lambda: [Path("/proc/self/smaps").read_bytes()[:9000]],
        (DoubtError,),
    ),
    Target("cgroup", cgroup.parse_cgroup, lambda: [b"0::/system.slice/docker-" + b"a" * 64]),
    Target(
        "http",
        httphead.parse_request,
        lambda: [b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"],
        (ValueError,),
    ),
    Target("match", _words, lambda: [b"exe=/usr/bin/x", b"2 hours ago", b"yesterday"]),
    Target("zstd frame", _zstd, lambda: [zstandard.compress(b"x" * 1000)]),
    Target("terminal", _printable, lambda: [b"\x1b[2J\xff\xe2\x80\xae"]),
)
