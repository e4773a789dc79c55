"""What passes between the daemon and an analysis worker that systemd started: the request and the
core's descriptor one way, the names of the core's modules the other, their files' descriptors back.

The worker has no powers and sees nothing of the host but /usr; the daemon opens for it what the
crashed user could have read, and only ELF images that are the ones that were mapped.

    frame     u32 big endian, then as many bytes of JSON
    daemon    frame: the request; the core's descriptor, if any, comes with its first byte, and
              after it that of a second file (a kernel's vmlinux)
    worker    frame: [{"name", "build_id", "image", "deleted"}, ...]   (bytes in base64)
    daemon    frame: [[has file, has debug file, problem], ...]; then, _BATCH_MAX descriptors with
              each byte, the files in this order
    worker    its result, up to the end of the stream
"""

import base64
import binascii
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.elf.elfcore import IMAGE_MAX
from crashd.domain.elf.modules import MODULES_MAX, Module
from crashd.edge.sandbox.modulefiles import ModuleFile, open_modules
from crashd.errors import FormatError

FRAME_MAX = 16 << 20
FILES_MAX = 800
"""Descriptors of one core's modules."""
_LENGTH = struct.Struct(">I")
_BATCH_MAX = 200  # SCM_MAX_FD is 253
_NAME_MAX = 4096
_ID_MAX = 128


# -- the daemon's side -----------------------------------------------------------------------------


def send_request(peer: socket.socket, request: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Send a request; blocks. A timeout is the socket's own."""
    raw = _frame(request)
    sent = socket.send_fds(peer, [raw], fds)
    peer.sendall(raw[sent:])


def answer_modules(peer: socket.socket, request: Mapping[str, Any]) -> None:
    """Take the list of modules from a worker, and send it their files.

    Raises:
        FormatError: the worker sent something else.
        EOFError: it ended instead.

    """
    modules = _parse_modules(_receive_frame(peer))
    found = open_modules(modules, FileSearch.from_json(request["search"]), FILES_MAX)
    fds = [fd for file in found for fd in (file.fd, file.debug_fd) if fd is not None]
    try:
        peer.sendall(_frame([[f.fd is not None, f.debug_fd is not None, f.problem] for f in found]))
        for start in range(0, len(fds), _BATCH_MAX):
            socket.send_fds(peer, [b"\0"], fds[start : start + _BATCH_MAX])
    finally:
        for fd in fds:
            os.close(fd)


def _parse_modules(raw: bytes) -> list[Module]:
    """Read what a worker, which may be in a hostile core's hands, wants opened."""
    try:
        rows = json.loads(raw)
        if not isinstance(rows, list) or len(rows) > MODULES_MAX:
            raise FormatError(f"the worker names no list of at most {MODULES_MAX} modules")
        modules = []
        for row in rows:
            name = base64.b64decode(row["name"], validate=True)
            image = base64.b64decode(row["image"], validate=True)
            build_id = row["build_id"]
            if len(name) > _NAME_MAX or len(image) > IMAGE_MAX:
                raise FormatError("the worker names a module that is too long")
            if build_id is not None and not _is_build_id(build_id):
                raise FormatError("the worker names a module with no such build-id")
            modules.append(Module(name, 0, 0, build_id, image, bool(row["deleted"])))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as e:
        raise FormatError(f"the worker names modules wrongly: {type(e).__name__}") from e
    return modules


def _is_build_id(text: object) -> bool:
    return isinstance(text, str) and len(text) <= _ID_MAX and set(text) <= set("0123456789abcdef")


# -- the worker's side -----------------------------------------------------------------------------


def receive_request(peer: socket.socket) -> dict[str, Any]:
    """Take the request; its `core_fd` and `extra_fd` are the descriptors that came with it.

    Raises:
        EOFError: the daemon has gone.

    """
    raw, fds, _, _ = socket.recv_fds(peer, _LENGTH.size, 2)
    raw += _receive(peer, _LENGTH.size - len(raw))
    request: dict[str, Any] = json.loads(_receive(peer, _size(raw)))
    core_fd, extra_fd = [*fds, None, None][:2]
    return {**request, "core_fd": core_fd, "extra_fd": extra_fd}


def ask_for_modules(peer: socket.socket, modules: Sequence[Module]) -> list[ModuleFile]:
    """Have the modules' files opened by the daemon.

    Raises:
        EOFError: the daemon has gone.

    """
    rows = [
        {
            "name": base64.b64encode(module.name[:_NAME_MAX]).decode(),
            # what tells the image where no build-id does
            "image": "" if module.build_id else base64.b64encode(module.image).decode(),
            "build_id": module.build_id,
            "deleted": module.deleted,
        }
        for module in modules
    ]
    peer.sendall(_frame(rows))
    answers = json.loads(_receive_frame(peer))
    wanted = sum(bool(has_file) + bool(has_debug) for has_file, has_debug, _ in answers)
    fds: list[int] = []
    while len(fds) < wanted:
        raw, more, _, _ = socket.recv_fds(peer, 1, _BATCH_MAX)
        if not raw or not more:
            raise EOFError("the daemon has gone")
        fds += more
    given = iter(fds)
    return [
        ModuleFile(
            module, next(given) if has_file else None, next(given) if has_debug else None, problem
        )
        for module, (has_file, has_debug, problem) in zip(modules, answers, strict=True)
    ]


# -- frames ----------------------------------------------------------------------------------------


def _frame(value: object) -> bytes:
    raw = json.dumps(value).encode()
    return _LENGTH.pack(len(raw)) + raw


def _receive_frame(peer: socket.socket) -> bytes:
    return _receive(peer, _size(_receive(peer, _LENGTH.size)))


def _size(raw: bytes) -> int:
    size = int(_LENGTH.unpack(raw)[0])
    if size > FRAME_MAX:
        raise FormatError(f"a frame of {size} bytes")
    return size


def _receive(peer: socket.socket, size: int) -> bytes:
    """Receive exactly so many bytes: one more could have the next descriptors."""
    parts = bytearray()
    while len(parts) < size:
        data = peer.recv(min(size - len(parts), 1 << 16))
        if not data:
            raise EOFError("the other side has gone")
        parts += data
    return bytes(parts)
