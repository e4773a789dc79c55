"""The values that configuration keys allow: the rules that keys.py uses.

The words of a rule complete the sentence "must be …", and appear in the man page. May import domain
and errors. Loads pydantic, which is slow: import this module only where it is needed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from crashd.configuration.tomltext import show_value
from crashd.domain.fleet.lines import LABEL_VALUE_MAX, LABELS_MAX, parse_labels
from crashd.domain.keep.policy import RULES_MAX, parse_rule
from crashd.domain.units import (
    Amount,
    format_duration,
    parse_bytes,
    parse_duration,
    parse_size,
)
from crashd.errors import FormatError, UsageError

_PATTERNS_MAX, PATTERN_MAX = 100, 128
_PATHS_MAX, _PATH_MAX = 16, 1024
_RECIPIENTS_MAX = 16
_RECIPIENT = r"age1[02-9ac-hj-np-z]{58}|ssh-ed25519 [A-Za-z0-9+/]{68}"


@dataclass(frozen=True, slots=True)
class Form:
    """The values of one key: the parser, and the words that complete "must be …"."""

    words: str
    parse: Callable[[Any], Any]
    """Returns the value to keep; raises ValueError or UsageError if it is not allowed."""

    def check(self, value: Any) -> Any:
        """Parse `value`, or raise an error that says what it must be.

        Raises:
            ValueError: the value is not allowed.
        """
        try:
            return self.parse(value)
        except (ValueError, UsageError) as e:
            why = f" ({e})" if isinstance(e, _Why) else ""
            raise ValueError(f"must be {self.words}, not {show_value(value)}{why}") from e

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Make pydantic use `check` alone, so that it does not convert "1" to 1."""
        return core_schema.no_info_plain_validator_function(self.check)


class _Why(ValueError):
    """A refusal with a reason beyond the rule's words."""


def one_of(*choices: str) -> Form:
    """Allow one of these words."""

    def parse(value: Any) -> Any:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError

    quoted = [f'"{choice}"' for choice in choices]
    return Form(" or ".join([", ".join(quoted[:-1]), quoted[-1]]), parse)


def whole(low: int, high: int, *, auto: bool = False) -> Form:
    """Allow a whole number from `low` to `high`, and with `auto` also "auto"."""

    def parse(value: Any) -> Any:
        # type(): True is an int.
        if (type(value) is int and low <= value <= high) or (auto and value == "auto"):
            return value
        raise ValueError

    return Form(('"auto" or ' if auto else "") + f"between {low} and {high}", parse)


def whole_or_infinity(low: int, high: int) -> Form:
    """Allow a whole number from `low` to `high`, or "infinity"."""

    def parse(value: Any) -> Any:
        if (type(value) is int and low <= value <= high) or value == "infinity":
            return value
        raise ValueError

    return Form(f'between {low} and {high}, or "infinity"', parse)


def duration(low_ns: int, high_ns: int, *, infinity: bool = False) -> Form:
    """Allow a duration from `low_ns` to `high_ns`, and with `infinity` also "infinity"."""

    def parse(value: Any) -> Any:
        if infinity and value == "infinity":
            return value
        if _is_text_or_int(value) and low_ns <= parse_duration(value) <= high_ns:
            return value
        raise ValueError

    words = f"a duration between {format_duration(low_ns)} and {format_duration(high_ns)}"
    return Form(words + (', or "infinity"' if infinity else ""), parse)


def _parse_paths(value: Any) -> str | tuple[str, ...]:
    return "auto" if value == "auto" else _parse_directories(value)


def _parse_directories(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not len(value) <= _PATHS_MAX:
        raise ValueError
    for path in value:
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise _Why(f"{show_value(path)} is not an absolute path")
        if len(path) > _PATH_MAX or ".." in path.split("/"):
            raise _Why(f"{show_value(path)} is too long, or contains ..")
    return tuple(value)


def _parse_path(value: Any) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError
    if len(value) > _PATH_MAX or ".." in value.split("/"):
        raise _Why(f"{show_value(value)} is too long, or contains ..")
    return value


def _parse_url(value: Any) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]{1,2000}", value):
        raise ValueError
    return value


def _parse_store_url(value: Any) -> str:
    if value == "":
        return ""
    if not isinstance(value, str):
        raise ValueError
    if re.fullmatch(r"(s3|gs|az|abfss)://[!-~]{1,1000}|file:///[!-~]{1,1000}", value) is None:
        raise ValueError
    if "@" in value or "?" in value or ".." in value.split("/"):
        raise _Why("a URL here has no user, no password, no query and no ..")
    return value.rstrip("/")


def _parse_recipients(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > _RECIPIENTS_MAX:
        raise ValueError
    for one in value:
        if not isinstance(one, str) or not re.fullmatch(_RECIPIENT, one, re.ASCII):
            raise _Why(f"{show_value(one)} is no public key of age")
    return tuple(value)


def _parse_labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError
    pairs = [one.partition("=") for one in value]
    if len({name for name, _, _ in pairs}) < len(pairs) or not all(mark for _, mark, _ in pairs):
        raise _Why("each is NAME=VALUE, and each NAME appears once")
    try:
        parse_labels({name: text for name, _, text in pairs})
    except FormatError as e:
        raise _Why(str(e)) from e
    return tuple(value)


def _parse_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _parse_rules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > RULES_MAX:
        raise ValueError
    for rule in value:
        if not isinstance(rule, str):
            raise _Why(f"{show_value(rule)} is not a rule")
        try:
            parse_rule(rule)
        except ValueError as e:
            raise _Why(f"{show_value(rule)}: {e}") from e
    return tuple(value)


def _parse_limit(value: Any) -> Any:
    if value == "infinity" or (_is_text_or_int(value) and parse_bytes(value) >= 0):
        return value
    raise ValueError


def _parse_bandwidth(value: Any) -> Any:
    if value == "infinity" or (_is_text_or_int(value) and parse_bytes(value) >= 16 << 10):
        return value
    raise ValueError


def _parse_work_memory(value: Any) -> Any:
    if _is_text_or_int(value) and 64 << 20 <= parse_bytes(value) <= 64 << 30:
        return value
    raise ValueError


def _parse_auto_size(value: Any) -> Any:
    if value == "auto" or (_is_text_or_int(value) and parse_bytes(value) >= 0):
        return value
    raise ValueError


def _parse_amount(value: Any) -> Amount:
    if isinstance(value, Amount):
        return value
    if _is_text_or_int(value):
        return parse_size(value)
    raise ValueError


def _parse_amount_or_infinity(value: Any) -> Any:
    return value if value == "infinity" else _parse_amount(value)


def _is_text_or_int(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _parse_listen(value: Any) -> str:
    if value in ("", "off"):
        return ""
    if isinstance(value, str):
        split_listen(value)
        return value
    raise ValueError


def split_listen(listen: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPV6]:PORT`; the brackets are removed.

    Raises:
        ValueError: the text is neither.
    """
    import ipaddress  # imported here: rarely needed

    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):(\d{1,5})", listen, re.ASCII)
    if not match:
        raise _Why("an IPv6 address needs brackets") if listen.count(":") > 1 else ValueError
    port = int(match[3])
    if port > 65535:
        raise _Why("the highest port is 65535")
    if match[1]:
        return str(ipaddress.IPv6Address(match[1])), port
    labels = match[2].split(".")
    if labels[-1].isdigit():
        return str(ipaddress.IPv4Address(match[2])), port
    if not all(re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", label) for label in labels):
        raise ValueError
    return match[2], port


def _parse_patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > _PATTERNS_MAX:
        raise ValueError
    for pattern in value:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= PATTERN_MAX:
            raise _Why(f"{show_value(pattern)} is not a pattern of that length")
        if "=" in pattern or "\0" in pattern:
            raise _Why(f"{show_value(pattern)}: variable names cannot contain that character")
    return tuple(value)


SIZE = Form('a size from "64M" to "64G"', _parse_work_memory)
SIZE_OR_INFINITY = Form('a size such as "64M", or "infinity"', _parse_limit)
SIZE_OR_AUTO = Form('"auto" or a size such as "64M"', _parse_auto_size)
FLAG = Form("true or false", _parse_flag)
RULES = Form(f'an array of at most {RULES_MAX} rules such as "mini exe=/usr/bin/*"', _parse_rules)
AMOUNT = Form('a size such as "64M" or a share such as "10%"', _parse_amount)
AMOUNT_OR_INFINITY = Form(
    'a size such as "64M", a share such as "10%", or "infinity"', _parse_amount_or_infinity
)
LISTEN = Form('"HOST:PORT", "[IPV6]:PORT" or "off"', _parse_listen)
URL = Form('"http://…" or "https://…", or ""', _parse_url)
BANDWIDTH = Form('a size such as "20M", at least "16K", or "infinity"', _parse_bandwidth)
STORE_URL = Form('"s3://…", "gs://…", "az://…", "file:///…", or ""', _parse_store_url)
RECIPIENTS = Form(
    f"an array of at most {_RECIPIENTS_MAX} public keys: age1… or ssh-ed25519 …",
    _parse_recipients,
)
LABELS = Form(
    f'an array of at most {LABELS_MAX} texts "NAME=VALUE", with names of a-z, 0-9 and _, and values'
    f" of at most {LABEL_VALUE_MAX} printable characters",
    _parse_labels,
)
PATH = Form('an absolute path, or ""', _parse_path)
PATHS = Form(f'"auto" or an array of at most {_PATHS_MAX} absolute paths', _parse_paths)
DIRECTORIES = Form(f"an array of at most {_PATHS_MAX} absolute paths", _parse_directories)
PATTERNS = Form(
    f"an array of at most {_PATTERNS_MAX} patterns of 1 to {PATTERN_MAX} characters",
    _parse_patterns,
)
