"""Removes secrets from a process's environment before it is stored.

The names stay, because they are most of what helps. A secret is recognised by its name or by the
form of its value. Both are guesses, and prefer to remove too much. An operator who must be sure
sets `[privacy] environ = "drop"`.
"""

import functools
import re
from fnmatch import translate
from typing import Final, Literal

SCRUBBED: Final = b"<scrubbed>"

# Matches the name in upper case, with one underscore for each run of other characters.
_SECRET_NAME = re.compile(
    rb"PASSW(?:OR)?D|PASS_?PHRASE|PASSCODE|PASS(?:_|$)|.PWD(?:_|$)|_PW(?:_|$)"
    rb"|SECRET|TOKEN(?!IZ)|CREDENTIAL|COOKIE|WEBHOOK"
    rb"|(?:API|ACCESS|PRIVATE|SESSION|SIGNING|ENCRYPTION|MASTER|ACCOUNT)_?KEY"
    rb"|(?:^|_)KEYS?(?:$|_(?:BASE64|B64|PEM|HEX|DATA)$)"
    rb"|(?:^|_)(?:O?AUTH|AUTHORIZATION|BEARER|JWT|PAT|SALT|OTP|DSN)(?:_|$)"
    rb"|CONN(?:ECTION)?_?STR(?:ING)?|(?:DATABASE|MONGO(?:DB)?|REDIS|AMQP|POSTGRES|MYSQL|DB)_UR[IL]"
)
# Names that match the above but hold no secret: directories, and paths of sockets.
_HARMLESS_NAMES = frozenset({b"OLDPWD", b"SSH_AUTH_SOCK", b"CREDENTIALS_DIRECTORY"})
_OTHER_CHARACTERS = re.compile(rb"[^A-Z0-9]+")
_KNOWN_NAME_BYTES = 64
_PLACE_NAME = re.compile(rb"_(?:FILE|PATH|DIR|SOCK|SOCKET)$")

# A run of characters is tried only from its start; otherwise a long run would take quadratic time.
_SECRET_VALUE = re.compile(
    rb"(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    rb"|gh[pousr]_[A-Za-z0-9]{16}|github_pat_[A-Za-z0-9_]{16}|glpat-[A-Za-z0-9_-]{16}"
    rb"|xox[a-z]-[A-Za-z0-9-]{8}"  # Slack
    rb"|sk_live_[A-Za-z0-9]{16}|AIza[0-9A-Za-z_-]{35}|npm_[A-Za-z0-9]{30}"  # Stripe, Google, npm
    rb"|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"  # JWT
    rb"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY"
    # Connection strings, command lines, JSON.
    rb"|(?i:(?:passw(?:or)?d|pwd|secret|token|api_?key|accesskey|accountkey)"
    rb"(?:=|[\"']\s{0,3}:)\s{0,3}[\"']?[^\s;&\"',}])"
)
# The text between `user:` and the last @ before the path of a URL.
_URL_PASSWORD = re.compile(rb"(?<=://)([^/?#\s:@]{0,256}:)[^/?#\s]{1,1024}@")


EnvironMode = Literal["scrub", "drop", "keep"]
"""Values of [privacy] environ."""


def scrub_environ(
    environ: tuple[bytes, ...],
    mode: EnvironMode,
    patterns: tuple[str, ...] = (),
) -> tuple[bytes, ...] | None:
    """Remove the secrets from the entries of an environment; return None in the mode "drop".

    `patterns` are globs (fnmatch, case ignored) of further names with values to remove. Entries
    without `=` and repeated names stay.
    """
    if mode == "drop":
        return None
    if mode == "keep":
        return environ
    more = [
        # as fnmatch does for bytes: as latin-1, a regex of characters becomes one of bytes
        re.compile(translate(p.encode().decode("latin-1")).encode("latin-1"), re.IGNORECASE)
        for p in patterns
    ]
    return tuple(_scrub_entry(entry, more) for entry in environ)


def _scrub_entry(entry: bytes, more: list[re.Pattern[bytes]]) -> bytes:
    name, equals, value = entry.partition(b"=")
    if _SECRET_VALUE.search(name):
        return SCRUBBED
    if value and any(pattern.match(name) for pattern in more):
        return name + equals + SCRUBBED
    if value and (_is_secret_name(name, value) or _SECRET_VALUE.search(value)):
        return name + equals + SCRUBBED
    return _URL_PASSWORD.sub(rb"\1" + SCRUBBED + b"@", entry)


def _is_secret_name(name: bytes, value: bytes) -> bool:
    judge = _judge_known if len(name) <= _KNOWN_NAME_BYTES else _judge_name
    is_secret, is_place = judge(name)
    return is_secret and not (is_place and value.startswith(b"/"))


def _judge_name(name: bytes) -> tuple[bool, bool]:
    """Return whether a name is that of a secret, and whether it may be that of a secret's file."""
    plain = _OTHER_CHARACTERS.sub(b"_", name.upper())
    is_secret = plain not in _HARMLESS_NAMES and _SECRET_NAME.search(plain) is not None
    return is_secret, _PLACE_NAME.search(plain) is not None


_judge_known = functools.lru_cache(512)(_judge_name)
"""The same names occur in nearly every environment."""
