"""The executable and libraries of a crashed process: which ones they are, and where their files may
be on this host. Pure; every name comes from the crashed process itself.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from struct import Struct

from crashd.domain.elf.auxv import AT_BASE, AT_PHDR
from crashd.domain.elf.elfcore import IMAGE_MAX, CoreHead, find_loads, parse_build_id
from crashd.domain.elf.elfnotes import MappedFile

MODULES_MAX = 512
_STACKS_MAX, _STACK_BYTES, _OTHER_STACK_BYTES = 256, 64 << 10, 4 << 10
"""Limits for the stacks that show which modules matter, if there are more than MODULES_MAX."""
DEBUG_ROOT = b"usr/lib/debug"
_DELETED = b" (deleted)"
_MAPS_LINE = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) [-rwxsp]{4} ([0-9a-f]{1,16}) "
    rb"[0-9a-f]+:[0-9a-f]+ [1-9]\d* +(/.{0,4095})",
    re.DOTALL,
)
_MAPS_LINES_MAX = 1 << 17
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_LOWER_MAX = 256
COMPARED_BYTES = 4096
"""Bytes compared for an image without a build-id: the page that a core has of each file (core(5)).
"""
_ELF_MAGIC = b"\x7fELF"
_HEADERS_BYTES = 4096

ReadAt = Callable[[int, int], bytes]
"""Takes address and size; returns fewer or no bytes if the core does not have them."""


@dataclass(frozen=True, slots=True)
class Module:
    """An ELF file that was mapped into the process."""

    name: bytes
    """As in NT_FILE, without the kernel's " (deleted)"."""
    start: int
    end: int
    build_id: str | None
    image: bytes
    """The first bytes as they lay in memory; empty if the core does not have them."""
    deleted: bool
    """Whether the file's name was already gone when the core was made."""
    files: tuple[MappedFile, ...] = ()
    """Its mappings, ascending."""


def find_modules(head: CoreHead, read: ReadAt) -> list[Module]:
    """Find the modules, ascending; MODULES_MAX at most, modules on a stack before others.

    A module begins where a file is mapped from its first byte, and includes the mappings of the
    same name that follow.
    """
    groups = _by_file(head, read)
    if len(groups) > MODULES_MAX:
        groups = _wanted_first(groups, head, read)
    found: list[Module] = []
    for group in groups:
        first = group[0]
        image = read(first.start, min(first.end - first.start, IMAGE_MAX))
        if image and not image.startswith(_ELF_MAGIC):
            continue
        if not image and len(group) == 1:
            continue  # data: nothing shows that it is an image, and it has no other mapping
        header = image or _start_elsewhere(group, read)
        found.append(
            Module(
                name=first.name.removesuffix(_DELETED),
                start=first.start,
                end=max(f.end for f in group),
                build_id=parse_build_id(header),
                image=image[:COMPARED_BYTES],
                deleted=first.name.endswith(_DELETED),
                files=tuple(group),
            )
        )
        if len(found) == MODULES_MAX:
            break
    return sorted(found, key=lambda module: module.start)


def name_files(files: Sequence[MappedFile], maps: bytes) -> tuple[MappedFile, ...]:
    """Return a core's mapped files with the names that /proc/PID/maps has for them.

    The kernel leaves out NT_FILE if a process has very many mappings or long names. For a file in
    an overlay, NT_FILE may have the layer's path. A line that is cut or odd is ignored.
    """
    named: dict[int, MappedFile] = {}
    for line in maps.split(b"\n", _MAPS_LINES_MAX)[:_MAPS_LINES_MAX]:
        found = _MAPS_LINE.fullmatch(line)
        if found is not None:
            start, end, offset = (int(found[index], 16) for index in (1, 2, 3))
            named[start] = MappedFile(start, end, offset, _unescape(found[4]))
    if not files:
        return tuple(named.values())
    return tuple(
        replace(f, name=named[f.start].name)
        if f.start in named and named[f.start].end == f.end
        else f
        for f in files
    )


def _unescape(name: bytes) -> bytes:
    """Undo the kernel's escape of a newline in a name."""
    return name.replace(b"\\012", b"\n")


def _by_file(head: CoreHead, read: ReadAt) -> list[list[MappedFile]]:
    groups: list[list[MappedFile]] = []
    for mapped in sorted(head.files, key=lambda f: f.start):
        same = groups and groups[-1][0].name == mapped.name
        if same and (mapped.offset_bytes or _is_start_again(groups[-1][0], mapped, read)):
            groups[-1].append(mapped)
        elif not mapped.offset_bytes:
            groups.append([mapped])
    return groups


def _is_start_again(first: MappedFile, later: MappedFile, read: ReadAt) -> bool:
    """Return whether two mappings of a file's start belong to one image.

    Linkers without `-z separate-code` put the data of a small file on the same page of the file as
    its headers. The page is then mapped twice, and was written to the second time.
    """
    header = read(first.start, _HEADERS_BYTES) or read(later.start, _HEADERS_BYTES)
    moved = [vaddr - offset for vaddr, offset in find_loads(header)]
    return any(later.start - first.start == other - moved[0] for other in moved[1:])


def _start_elsewhere(group: Sequence[MappedFile], read: ReadAt) -> bytes:
    """Return the first bytes of a file whose first mapping is not in the core, from another mapping
    of them. The loader may have changed what is data there.
    """
    for mapped in group[1:]:
        if not mapped.offset_bytes:
            start = read(mapped.start, min(mapped.end - mapped.start, IMAGE_MAX))
            if start.startswith(_ELF_MAGIC):
                return start
    return b""


def _wanted_first(
    groups: list[list[MappedFile]], head: CoreHead, read: ReadAt
) -> list[list[MappedFile]]:
    """Sort first the files that hold a program counter, the executable's headers, or the loader,
    then the files that words on the stacks point into, the crashed thread's stack first.
    """
    starts = [group[0].start for group in groups]
    threads = head.threads[:_STACKS_MAX]
    addresses = [t.pc for t in threads[:1]] + [head.auxv.get(kind) for kind in (AT_PHDR, AT_BASE)]
    addresses += [t.pc for t in threads[1:]]
    for index, thread in enumerate(threads):
        if thread.sp is not None:
            size = _STACK_BYTES if index == 0 else _OTHER_STACK_BYTES
            addresses += _words(read(thread.sp & ~7, size), head)
    rank: dict[int, int] = {}
    for address in dict.fromkeys(addresses):
        index = bisect_right(starts, address) - 1 if address is not None else -1
        if index >= 0 and address is not None and address < max(f.end for f in groups[index]):
            rank.setdefault(index, len(rank))
    order = sorted(range(len(groups)), key=lambda n: rank.get(n, len(groups)))
    return [groups[n] for n in order]


def _words(raw: bytes, head: CoreHead) -> list[int]:
    size = head.bits // 8
    whole = raw[: len(raw) - len(raw) % size]
    code = "Q" if head.bits == 64 else "I"
    order = "<" if head.byteorder == "little" else ">"
    return list(Struct(f"{order}{len(whole) // size}{code}").unpack(whole))


def file_roots(mountinfo: bytes | None, root: bytes) -> list[bytes]:
    """Return the host's directories below which a process's own paths may be found, best first.

    If a container's root is an overlay (proc_pid_mountinfo(5)), these are its layers.
    """
    roots: list[bytes] = []
    for line in (mountinfo or b"").splitlines():
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if separator and len(fields) > 4 and fields[4] == b"/" and rest[0] == b"overlay":
            roots = list(_layers(rest[-1]))
    if root.startswith(b"/") and root != b"/":
        roots.append(root)
    return [*roots, b"/"]


def _layers(options: bytes) -> Iterator[bytes]:
    """Yield the upper and lower directories of an overlay, the upper first."""
    # a backslash escapes a comma or colon within a name, as the kernel parses it
    found: dict[bytes, list[bytes]] = {}
    for option in re.split(rb"(?<!\\),", options):
        key, _, value = option.partition(b"=")
        found.setdefault(key.rstrip(b"+"), []).append(value)
    uppers = found.get(b"upperdir", [])
    lowers = [part for value in found.get(b"lowerdir", []) for part in _split_colons(value)]
    for name in [*uppers, *lowers[:_LOWER_MAX]]:
        plain = _ESCAPE.sub(lambda m: bytes([int(m[1], 8) & 0xFF]), name)
        if plain.startswith(b"/"):
            yield plain


def _split_colons(value: bytes) -> list[bytes]:
    return [part.replace(b"\\:", b":") for part in re.split(rb"(?<!\\):", value) if part]


def debug_file_names(module_name: bytes, link: bytes | None) -> list[bytes]:
    """Return the possible names of a module's separate debug file, as paths below a root.

    `link` is the name in its .gnu_debuglink. Source: gdb's manual, "Separate Debug Files".
    """
    if not link or b"/" in link or link in (b".", b".."):
        return []
    directory = module_name.rpartition(b"/")[0]
    return [
        directory + b"/" + link,
        directory + b"/.debug/" + link,
        DEBUG_ROOT + directory + b"/" + link,
    ]


def alternate_names(link: bytes) -> list[bytes]:
    """Return the possible paths of a file named in .gnu_debugaltlink, below a root: only in the
    directory that is for such files.
    """
    name = link.rpartition(b"/.dwz/")[2] if b"/.dwz/" in link else link.rpartition(b"/")[2]
    parts = path_parts(name)
    return [] if parts is None else [DEBUG_ROOT + b"/.dwz/" + b"/".join(parts)]


def build_id_names(build_id: str | None, directory: bytes = DEBUG_ROOT) -> list[bytes]:
    """Return the path of an executable or library below a directory that has a .build-id."""
    if build_id is None or len(build_id) <= 4:
        return []
    raw = build_id.encode()
    return [directory + b"/.build-id/" + raw[:2] + b"/" + raw[2:]]


def same_image(image: bytes, file_start: bytes, build_id: str | None) -> bool | None:
    """Return whether a file is the one that was mapped; None if the core does not show it.

    Without a build-id the first page decides: it has the headers, and for most files the names
    that they import and export.
    """
    if not file_start.startswith(_ELF_MAGIC):
        return False
    if build_id is not None:
        return parse_build_id(file_start) == build_id
    size = min(len(file_start), COMPARED_BYTES)
    if len(image) < size:
        return None
    return image[:size] == file_start[:size]


def path_parts(path: bytes) -> Sequence[bytes] | None:
    """Split a path into names to open one below the other; None if the path is not plain."""
    parts = [part for part in path.split(b"/") if part]
    return None if not parts or b".." in parts or b"\0" in path else parts
