"""The protocol between the daemon and an analysis worker started by systemd.

The daemon sends the request and the core's descriptor, the worker the names of the core's modules,
and the daemon the descriptors of their files. The worker has no privileges, and sees nothing of the
host but /usr. The daemon opens files for it that the crashed user could read, and only the ELF
images that were mapped.

    daemon    the request; the core's descriptor, if any, comes with its first byte, and after it
              those of other files (a kernel's vmlinux, the other parts of its dump), or of other
              cores of the program
    worker    [{"name", "build_id", "image", "deleted"}, ...]   (bytes in base64)
    daemon    [[has file, has debug file, has alternate, problem], ...]; then, _BATCH_MAX
              descriptors with each byte, the files in this order
    worker    its result, up to the end of the stream

All but the result are messages of base/messages.py.
"""

import base64
import binascii
import json
import os
import socket
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from crashd.base import messages
from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.elf.elfcore import IMAGE_MAX
from crashd.domain.elf.modules import MODULES_MAX, Module
from crashd.edge.sandbox.modulefiles import ModuleFile, open_modules
from crashd.errors import FormatError

MESSAGE_MAX = 16 << 20
FILES_MAX = 800
"""Descriptors for the modules of one core."""
EXTRA_MAX = 100
"""Descriptors that come with a request besides the core's."""
OTHERS_MAX = 31
"""Cores that one worker analyses after the first one."""
_BATCH_MAX = 200  # SCM_MAX_FD is 253
_NAME_MAX = 4096
_ID_MAX = 128


# -- the daemon's side -----------------------------------------------------------------------------


def send_request(peer: socket.socket, request: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Send a request; blocks up to the socket's own timeout."""
    raw = messages.pack(request)
    sent = messages.send_packet(peer, raw, fds)
    peer.sendall(raw[sent:])


def answer_modules(peer: socket.socket, request: Mapping[str, Any]) -> None:
    """Receive the list of modules from a worker, and send it their files.

    Raises:
        FormatError: the worker sent something else.
        EOFError: the worker ended.
    """
    modules = _parse_modules(messages.receive(peer, MESSAGE_MAX))
    found = open_modules(modules, FileSearch.from_json(request["search"]), FILES_MAX)
    fds = [fd for file in found for fd in file.descriptors]
    try:
        told = [
            [*(fd is not None for fd in (f.fd, f.debug_fd, f.alternate_fd)), f.problem]
            for f in found
        ]
        peer.sendall(messages.pack(told))
        for start in range(0, len(fds), _BATCH_MAX):
            messages.send_packet(peer, b"\0", fds[start : start + _BATCH_MAX])
    finally:
        for fd in fds:
            os.close(fd)


def _parse_modules(raw: bytes) -> list[Module]:
    """Parse a worker's list of modules; a hostile core may have taken over the worker."""
    try:
        rows = json.loads(raw)
        if not isinstance(rows, list) or len(rows) > MODULES_MAX:
            raise FormatError(f"the worker did not send a list of at most {MODULES_MAX} modules")
        modules = []
        for row in rows:
            name = base64.b64decode(row["name"], validate=True)
            image = base64.b64decode(row["image"], validate=True)
            build_id = row["build_id"]
            if len(name) > _NAME_MAX or len(image) > IMAGE_MAX:
                raise FormatError("the worker sent a module name or image that is too long")
            if build_id is not None and not _is_build_id(build_id):
                raise FormatError("the worker sent an invalid build-id")
            modules.append(Module(name, 0, 0, build_id, image, bool(row["deleted"])))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as e:
        raise FormatError(f"the worker sent a malformed list of modules: {type(e).__name__}") from e
    return modules


def _is_build_id(text: object) -> bool:
    return isinstance(text, str) and len(text) <= _ID_MAX and set(text) <= set("0123456789abcdef")


# -- the worker's side -----------------------------------------------------------------------------


def receive_request(peer: socket.socket) -> dict[str, Any]:
    """Receive the request; `core_fd`, `extra_fds` and those of its `others` are the descriptors
    that came with it.

    Raises:
        EOFError: the daemon has ended.
    """
    first = messages.receive_packet(peer, messages.HEADER_SIZE, 1 + EXTRA_MAX)
    header = first.data
    if len(header) < messages.HEADER_SIZE:
        header += messages.receive_exactly(peer, messages.HEADER_SIZE - len(header))
    size = messages.parse_size(header, MESSAGE_MAX)
    request = messages.parse(messages.receive_exactly(peer, size))
    core_fd = first.descriptors[0] if first.descriptors else None
    more = first.descriptors[1:]
    if request.get("others"):
        others = name_cores(request["others"], more[:OTHERS_MAX])
        return {**request, "core_fd": core_fd, "others": others}
    return {**request, "core_fd": core_fd, "extra_fds": more}


def name_cores(others: Sequence[Mapping[str, Any]], fds: Sequence[Any]) -> list[dict[str, Any]]:
    """Add its core's descriptor to each of a request's others."""
    return [{**other, "core_fd": fd} for other, fd in zip(others, fds, strict=False)]


def ask_for_modules(peer: socket.socket, modules: Sequence[Module]) -> list[ModuleFile]:
    """Have the daemon open the files of the modules.

    Raises:
        EOFError: the daemon has ended.
    """
    rows = [
        {
            "name": base64.b64encode(module.name[:_NAME_MAX]).decode(),
            # identifies the image without a build-id
            "image": "" if module.build_id else base64.b64encode(module.image).decode(),
            "build_id": module.build_id,
            "deleted": module.deleted,
        }
        for module in modules
    ]
    peer.sendall(messages.pack(rows))
    answers = json.loads(messages.receive(peer, MESSAGE_MAX))
    wanted = sum(map(bool, chain.from_iterable(answer[:3] for answer in answers)))
    fds: list[int] = []
    while len(fds) < wanted:
        batch = messages.receive_packet(peer, 1, _BATCH_MAX)
        if not batch.data or not batch.descriptors:
            raise EOFError("the daemon has gone")
        fds += batch.descriptors
    given = iter(fds)
    return [
        ModuleFile(
            module,
            next(given) if has_file else None,
            next(given) if has_debug else None,
            problem,
            next(given) if has_alternate else None,
        )
        for module, (has_file, has_debug, has_alternate, problem) in zip(
            modules, answers, strict=True
        )
    ]
