"""Make what an analysis worker found, one fact changed at a time."""

from typing import Any

from crashd.domain.cause.analysis import (
    Access,
    Facts,
    Frame,
    Instruction,
    Region,
    SignalFacts,
    ThreadStack,
)

PC, SP = 0x401000, 0x7FFD0000


def build_frame(function: str | None, **more: Any) -> Frame:
    """Build a frame of the program itself."""
    values: dict[str, Any] = {
        "module": "/usr/bin/prog",
        "build_id": "ab" * 20,
        "offset": 0x1000,
        "pc": PC,
        **more,
    }
    return Frame(function, **values)


def build_access(mode: str, address: int | None, **more: Any) -> Access:
    """Build an access through rax without a displacement."""
    values: dict[str, Any] = {
        "size": 8,
        "displacement": 0,
        "base": "rax",
        "base_value": address,
        "index": None,
        **more,
    }
    return Access(mode, address, **values)


def build_region(address: int, kind: str = "none", **more: Any) -> Region:
    """Build what is at an address."""
    values: dict[str, Any] = {"perms": "", "name": "", **more}
    return Region(address, kind, **values)


def build_facts(
    *functions: str | Frame,
    signal: int = 11,
    code: int = 1,
    address: int | None = None,
    access: tuple[Access, ...] = (),
    mnemonic: str | None = "mov",
    text: str | None = None,
    regions: dict[str, Region] | None = None,
    messages: dict[str, str] | None = None,
    python: tuple[Frame, ...] = (),
    **more: Any,
) -> Facts:
    """Build facts of a crash in these functions, the innermost first."""
    frames = tuple(f if isinstance(f, Frame) else build_frame(f) for f in functions)
    sender = {key: more.pop(key, None) for key in ("sender_pid", "sender_uid", "error_code")}
    syscall = {key: more.pop(key) for key in ("syscall", "syscall_name") if key in more}
    found = {"pc": build_region(PC, "file", perms="r-x"), "sp": build_region(SP, "stack")}
    if address is not None:
        found["fault"] = build_region(address)
    return Facts(
        machine=62,
        bits=64,
        threads=(ThreadStack(100, True, frames, False),),
        modules=(),
        registers=more.pop("registers", {}),
        instruction=Instruction("90", text, mnemonic, access, more.pop("target", None)),
        siginfo=SignalFacts(signal, code, address, **sender, **syscall),
        regions=found | (regions or {}),
        messages=messages or {},
        problems=(),
        interpreted=(ThreadStack(100, False, python, False),) if python else (),
    )
