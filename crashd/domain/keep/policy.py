"""How much of a crash may be kept by the administrator's rules. Pure.

    mini exe=/usr/lib/chromium/* uid=1000
    metadata unit=batch-*.service

A rule is a disposition and one or more conditions, which must all hold; the first rule that matches
applies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from crashd.domain.crash.model import Disposition
from crashd.domain.keep.site import Site
from crashd.domain.signals import signal_name

FIELDS = ("exe", "unit", "uid", "signal", "comm")
RULES_MAX = 200
RULE_MAX = 1000


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, parsed."""

    disposition: Disposition
    conditions: tuple[tuple[str, str], ...]
    """Fields, with the shell pattern that each must match."""


def parse_rule(text: str) -> Rule:
    """Parse a rule.

    Raises:
        ValueError: it is not a rule; the message says why.
    """
    if len(text) > RULE_MAX:
        raise ValueError(f"a rule has at most {RULE_MAX} characters")
    words = text.split()
    dispositions = [d.value for d in Disposition]
    if not words or words[0] not in dispositions:
        raise ValueError(f"a rule begins with one of {', '.join(dispositions)}")
    conditions: list[tuple[str, str]] = []
    for word in words[1:]:
        name, equals, pattern = word.partition("=")
        if not equals or name not in FIELDS or not pattern:
            raise ValueError(f"{word!r} is not a condition: FIELD=PATTERN with {', '.join(FIELDS)}")
        conditions.append((name, pattern))
    if not conditions:
        raise ValueError("a rule needs a condition such as exe=/usr/bin/*")
    return Rule(Disposition(words[0]), tuple(conditions))


def most_of(site: Site, rules: Sequence[Rule], default: Disposition) -> tuple[Disposition, str]:
    """Return how much of a crash may be kept, and which setting says so."""
    values = {
        "exe": site.exe,
        "unit": site.unit or "",
        "uid": str(site.uid),
        "signal": "" if site.signal is None else signal_name(site.signal),
        "comm": site.comm,
    }
    for rule in rules:
        if all(fnmatchcase(values[name], pattern) for name, pattern in rule.conditions):
            return rule.disposition, f"capture.rules keeps {rule.disposition} of such a crash"
    return default, f"capture.keep is {default}"
