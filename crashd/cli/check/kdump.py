"""`kdump`: checks whether the next kernel crash would leave a dump."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from crashd.base.files import read_file, replace_file
from crashd.cli.context import Context
from crashd.cli.render import GREEN, RED, YELLOW, json_page, labelled, styled, wrap
from crashd.domain.kdump.conf import ConfFinding, Severity
from crashd.domain.kdump.permit import DROP_IN, build_drop_in, is_writable
from crashd.domain.kdump.ready import KdumpFacts, Readiness, Target, assess
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.edge.host.kdumpfacts import read_details, read_facts
from crashd.errors import CrashdError

_WIDTH = 15
_DROP_IN_MAX = 64 * 1024
_STYLES = {Severity.FAULT: RED, Severity.WARNING: YELLOW, Severity.NOTICE: None}


def kdump(context: Context, arguments: argparse.Namespace) -> int:
    """Print how kernel dumps are set up; return 1 if the next panic would leave nothing."""
    facts = _read(context)
    if arguments.allow_deletion:
        return _allow_deletion(context, facts)
    verdict = assess(facts)
    if arguments.json:
        print(json_page(_document(facts, verdict), arguments.json))
    else:
        for line in render_readiness(facts, verdict, color=context.color, width=context.width):
            print(line)
    return 0 if verdict.ready else 1


def _read(context: Context) -> KdumpFacts:
    facts = read_facts(context.paths.root)
    return read_details(context.paths.root, facts, _configured(context))


def _configured(context: Context) -> Sequence[str]:
    """Name the directories that crashd itself is told to watch."""
    from crashd.configuration.files import load  # loads pydantic: slow

    try:
        paths = load(context.paths).kdump.paths
    except CrashdError as e:
        context.warn(f"{e}: kdump.paths is not known")
        return ()
    return () if isinstance(paths, str) else tuple(paths)


def _allow_deletion(context: Context, facts: KdumpFacts) -> int:
    """Write the drop-in that lets crashd.service delete dumps, and say how it takes effect."""
    path = context.paths.root / DROP_IN
    if not facts.denied:
        print("crashd.service may delete dumps wherever they are saved: nothing to do")
        return 0
    try:
        # What the drop-in allows already is not denied, and has to stay in it.
        before = read_file(path, _DROP_IN_MAX).decode() if path.exists() else ""
        allowed = [t.path for t in facts.targets if t.path in facts.denied or _names(before, t)]
        text = build_drop_in(allowed)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.new")  # systemd reads only what ends in .conf
        replace_file(path, text.encode(), staged=staged, mode=0o644)
    except (OSError, ValueError) as e:
        raise CrashdError(f"{path} cannot be written: {e}") from e
    print(f"{path} lets crashd.service delete dumps in {', '.join(map(printable, allowed))}")
    print("It takes effect with: systemctl daemon-reload && systemctl restart crashd.service")
    return 0


def _names(drop_in: str, target: Target) -> bool:
    return is_writable(target.path, "ProtectSystem=strict\n" + drop_in)


def _document(facts: KdumpFacts, verdict: Readiness) -> dict[str, Any]:
    """Build the JSON object: the verdict, and the facts behind it."""
    return {
        "ready": verdict.ready,
        "loaded": facts.loaded,
        "fadump": facts.fadump,
        "reserved_bytes": facts.reserved_bytes,
        "crashkernel": list(_crashkernel(facts)),
        "sysctls": dict(facts.sysctls),
        "tools": list(facts.installed),
        "targets": [
            {
                "path": target.path,
                "exists": target.exists,
                "free_bytes": target.free_bytes,
                "total_bytes": target.total_bytes,
            }
            for target in facts.targets
        ],
        "needed_bytes": verdict.needed_bytes,
        "dump_level": facts.dump_level,
        "largest_dump_bytes": facts.dump_bytes,
        "initrd_bytes": facts.initrd_bytes,
        "deletion_denied": list(facts.denied),
        "tool_keeps": facts.tool_count,
        "pstore": facts.pstore,
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity.value,
                "text": finding.text,
                "hint": finding.hint or None,
            }
            for finding in verdict.findings
        ],
    }


def _crashkernel(facts: KdumpFacts) -> Iterator[str]:
    for word in facts.cmdline.split():
        if word.startswith(b"crashkernel="):
            yield printable(word)


def render_readiness(
    facts: KdumpFacts, verdict: Readiness, *, color: bool, width: int | None = None
) -> Iterator[str]:
    """Yield the lines of the page: whether the next kernel crash would leave a dump, and why.

    They are wrapped to `width` columns, except commands, which are there to be copied.
    """
    ready = "the next crash of the kernel will leave a dump, as far as can be told"
    not_ready = "the next crash of the kernel will leave no dump"
    style = (GREEN if verdict.ready else RED) if color else None
    yield styled(ready if verdict.ready else not_ready, style)
    yield ""
    for label, text in _facts(facts, verdict):
        yield from labelled(label, text, _WIDTH, width)
    if verdict.findings:
        yield ""
    for finding in verdict.findings:
        yield from _finding(finding, color, width)


def _facts(facts: KdumpFacts, verdict: Readiness) -> Iterator[tuple[str, str]]:
    loaded = {True: "loaded", False: "not loaded", None: "not supported by this kernel"}[
        facts.loaded
    ]
    if facts.fadump:
        loaded = "registered with the firmware (fadump)"
    yield "Capture kernel", loaded
    reserved = facts.reserved_bytes
    yield "Reserved", "unknown" if reserved is None else format_size(reserved)
    yield "Command line", " ".join(_crashkernel(facts)) or "no crashkernel="
    sysctls = [f"{name}={value}" for name, value in facts.sysctls.items()]
    yield "Sysctls", " ".join(sysctls) or "unknown"
    yield "Tool", ", ".join(facts.installed) or "none"
    for target in facts.targets:
        free = (
            "does not exist" if not target.exists else f"{format_size(target.free_bytes or 0)} free"
        )
        yield "Saved in", f"{printable(target.path)} ({free})"
    yield "A dump takes", f"about {format_size(verdict.needed_bytes)}"
    count = facts.tool_count
    yield "The tool keeps", "all dumps" if not count else f"{count} dumps"
    yield "pstore", facts.pstore or "none"


def _finding(finding: ConfFinding, color: bool, width: int | None) -> Iterator[str]:
    style = _STYLES[finding.severity] if color else None
    level = f"{finding.severity.value:<8}"
    first, *rest = wrap(f"{level} {printable(finding.text)}", width, 9)
    yield styled(level, style) + first[len(level) :]
    yield from rest
    if finding.hint:
        yield f"{'':<8} -> {printable(finding.hint)}"
