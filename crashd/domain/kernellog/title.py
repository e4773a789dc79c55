"""Builds the title of a kernel crash. Pure.

Titles have syzkaller's form: what happened, and in which function. blame.py finds that function.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crashd.domain.kernellog.blame import STACK_END, Blamed, blame, find_panic, protector_of
from crashd.domain.kernellog.head import Blame, Head
from crashd.domain.kernellog.kinds import PanicKind
from crashd.domain.kernellog.signature import normal_name, normal_words
from crashd.domain.kernellog.trace import ReportFacts, TraceFrame

__all__ = ["TITLE_MAX", "ReportTitle", "title_report"]

TITLE_MAX: Final = 256

_ACCESS = re.compile(r"(Read|Write) (?:of|at)")
_FAILING_NULL = re.compile(r"(?:Failing address: 0{8,13}[0-9a-f]{3}\b|CR2: 0{13}[0-9a-f]{3}\b)")
_EXIT_CODE = re.compile(r" ?exitcode=.*")
_WHO = re.compile(r"(?: on CPU#\d{1,6}|,? by|:)?[ ,]+\S{1,40}/\d{1,10}$| on CPU#\d{1,6}\b.*")
_CORRUPTED = "stack-protector: Kernel stack is corrupted in"
_USER_MODE_LINUX = "Kernel mode fault"  # then address and place, as in a fault's head
_PANICKED = re.compile(r"\w{1,64}: panicked at ")


@dataclass(frozen=True, slots=True)
class ReportTitle:
    """The title, and the function to blame."""

    title: str
    key: str
    """The part of the title that goes into the signature."""
    frame: TraceFrame | None
    """The function to blame; has an offset only if the log does."""
    blamed: tuple[str, ...]
    """The function and its callers, for the signature."""


def title_report(
    head: Head | None,
    match: re.Match[str] | None,
    facts: ReportFacts,
    texts: Sequence[str],
) -> ReportTitle:
    """Return the title of a report, and the function to blame.

    Args:
        head: the first line of the report; None if it is missing.
        match: the head's match on that line.
        facts: the facts in its lines.
        texts: its lines.
    """
    groups = {} if match is None else match.groupdict()
    blamed = blame(head, facts, texts, groups.get("func") or groups.get("only"))
    if head is None:
        panicked = find_panic(facts.trace) >= 0 and facts.pc is None
        title = f"{'kernel panic' if panicked else 'kernel oops'}{_in(blamed)}"
    else:
        title = _build_title(head, groups, blamed, texts)
    key = title
    if head is not None and head.blame is Blame.STALL:
        key = _build_title(head, groups, Blamed(), texts)
    return ReportTitle(title[:TITLE_MAX], key[:TITLE_MAX], blamed.frame, blamed.functions)


def _build_title(
    head: Head, groups: dict[str, str | None], blamed: Blamed, texts: Sequence[str]
) -> str:
    """Fill in the title of a head.

    The same fault has other first lines on other architectures; a NULL pointer is only recognised
    by an address in the lines below.
    """
    words = {
        name: normal_words(value or "")
        for name, value in groups.items()
        if name not in ("func", "only")
    }
    words |= _special_words(head, groups, blamed, texts)
    title = head.title
    if "paging request" in title and (
        groups.get("null") or any(_FAILING_NULL.search(text[:200]) for text in texts[:64])
    ):
        title = title.replace("paging request", "NULL pointer dereference")
    fallback = f" at {groups['file']}" if groups.get("file") else ""
    in_f = _in(blamed)
    return title.format_map(
        {"access": "", **words, "in_f": in_f, "in_f_or_at_file": in_f or fallback}
    ).strip(" :")


def _special_words(
    head: Head, groups: dict[str, str | None], blamed: Blamed, texts: Sequence[str]
) -> dict[str, str]:
    """Return the words of a title that differ from those of the head."""
    what = groups.get("what") or ""
    if head.kind is PanicKind.PANIC:
        return {"words": _panic_words(groups.get("words") or "", blamed)}
    if head.kind is PanicKind.KASAN:
        if "invalid-free" in what:
            return {"what": "invalid-free"}
        found = next(filter(None, (_ACCESS.match(text.lstrip()) for text in texts)), None)
        if found is not None and (not what.endswith("-free") or "after" in what):
            return {"access": f" {found[1]}"}
    if head.kind is PanicKind.UBSAN and what.lower().startswith("undefined behavio"):
        return {"what": "undefined-behaviour"}
    if head.kind is PanicKind.UBSAN and " " in what:  # a trap has the same words with blanks
        return {"what": normal_words(what).replace(" ", "-")}
    if head.kind in (PanicKind.NMI, PanicKind.MCE):  # these numbers distinguish faults
        return {name: value or "" for name, value in groups.items() if name in ("what", "bank")}
    if "reason" in groups:
        return {"reason": normal_words((groups["reason"] or _panicked_of(texts)).strip("'\""))}
    if groups.get("words"):
        return {"words": normal_words(_WHO.sub("", groups["words"] or ""))}
    if "reg" in groups:
        return {"reg": groups["reg"] or ""}
    if "_" in what and head.kind is PanicKind.OOPS:
        return {"what": what.replace("_", " ")}
    return {"what": f" {words}"} if (words := normal_words(what)) and what.startswith(" ") else {}


def _panicked_of(texts: Sequence[str]) -> str:
    """Return the reason of a Rust panic: the line after the place."""
    for n, text in enumerate(texts[:16]):
        if _PANICKED.match(text):
            return texts[n + 1] if n + 1 < len(texts) and "cut here" not in texts[n + 1] else ""
    return ""


def _in(blamed: Blamed) -> str:
    return f" in {blamed.name}" if blamed.name is not None else ""


def _panic_words(words: str, blamed: Blamed) -> str:
    if words.startswith(_CORRUPTED):
        protector = protector_of([words])
        return f"{_CORRUPTED} {normal_name(protector) if protector else blamed.name}"
    if words.startswith(STACK_END):
        return f"{normal_words(words)}{_in(blamed)}"
    if words.startswith(_USER_MODE_LINUX):
        return _USER_MODE_LINUX
    return normal_words(_EXIT_CODE.sub("", words)) if "kill init" in words else normal_words(words)
