"""`kdump`: checks whether the next kernel crash would leave a dump."""

import argparse
from collections.abc import Iterator
from typing import Any

from crashd.cli.context import Context
from crashd.cli.render import GREEN, RED, YELLOW, json_page, styled
from crashd.domain.kdump.conf import Finding, Severity
from crashd.domain.kdump.ready import Facts, Readiness, assess
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.edge.host.kdumpfacts import read_facts

_WIDTH = 15
_STYLES = {Severity.FAULT: RED, Severity.WARNING: YELLOW, Severity.NOTICE: None}


def kdump(context: Context, arguments: argparse.Namespace) -> int:
    """Print how kernel dumps are set up; return 1 if the next panic would leave nothing."""
    facts = read_facts(context.paths.root)
    verdict = assess(facts)
    if arguments.json:
        print(json_page(_document(facts, verdict)))
    else:
        for line in render_readiness(facts, verdict, color=context.color):
            print(line)
    return 0 if verdict.ready else 1


def _document(facts: Facts, verdict: Readiness) -> dict[str, Any]:
    return {
        "ready": verdict.ready,
        "loaded": facts.loaded,
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


def _crashkernel(facts: Facts) -> Iterator[str]:
    for word in facts.cmdline.split():
        if word.startswith(b"crashkernel="):
            yield printable(word)


def render_readiness(facts: Facts, verdict: Readiness, *, color: bool) -> Iterator[str]:
    """Yield the lines of the page: whether the next kernel crash would leave a dump, and why."""
    ready = "the next crash of the kernel will leave a dump, as far as can be told"
    not_ready = "the next crash of the kernel will leave no dump"
    style = (GREEN if verdict.ready else RED) if color else None
    yield styled(ready if verdict.ready else not_ready, style)
    yield ""
    for label, text in _facts(facts, verdict):
        yield f"{label:>{_WIDTH}}: {text}"
    if verdict.findings:
        yield ""
    for finding in verdict.findings:
        yield from _finding(finding, color)


def _facts(facts: Facts, verdict: Readiness) -> Iterator[tuple[str, str]]:
    loaded = {True: "loaded", False: "not loaded", None: "not supported by this kernel"}[
        facts.loaded
    ]
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


def _finding(finding: Finding, color: bool) -> Iterator[str]:
    style = _STYLES[finding.severity] if color else None
    yield f"{styled(f'{finding.severity.value:<8}', style)} {printable(finding.text)}"
    if finding.hint:
        yield f"{'':<8} -> {printable(finding.hint)}"
