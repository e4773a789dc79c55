"""What SELinux and AppArmor forbid crashd, by their lines in the audit log. Pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from crashd.domain.host.doctor import Check, failed, passed, warned

NAME: Final = "denials"
AGE_MAX_NS: Final = 24 * 3600 * 10**9
_TIME = re.compile(rb"audit\(([0-9]{1,12})\.[0-9]{3}:[0-9]+\)")
_SELINUX = re.compile(
    rb"avc:  denied  \{ ([a-z_ ]{1,200}) \} for .*"
    rb"scontext=[^ :]+:[^ :]+:(kernel_t|init_t|initrc_t|unconfined_service_t|crashd_[a-z_]+)[: ]"
    rb".*tcontext=[^ :]+:[^ :]+:([a-z0-9_]{1,80}).*tclass=([a-z0-9_]{1,80})"
)
_OURS = re.compile(rb'comm="crash(?:d|d-core|d-corcrashd.*|ctl)"')
_APPARMOR = re.compile(
    rb'apparmor="(DENIED|ALLOWED)" operation="([a-z_]{1,80})".* profile="crashd-[a-z-]+"'
)
_NAME = re.compile(rb' name="([^"]{1,200})"')


@dataclass(frozen=True, slots=True)
class Denials:
    """What was found; `active` names the security modules of the running kernel."""

    active: tuple[str, ...] = ()
    readable: bool = False
    """Whether any log could be read."""
    enforced: int = 0
    permitted: int = 0
    """Logged, but not enforced: the domain is permissive, or the profile in complain mode."""
    last: str = ""


def find_denials(active: tuple[str, ...], lines: Iterable[bytes] | None, now_ns: int) -> Denials:
    """Count the denials of the last day; `lines` is None if no log can be read."""
    enforced = permitted = 0
    last = ""
    for line in lines or ():
        time = _TIME.search(line)
        found = _parse(line) if time and now_ns - int(time[1]) * 10**9 < AGE_MAX_NS else None
        if found is not None:
            enforced, permitted = enforced + found[0], permitted + (not found[0])
            last = found[1]
    return Denials(active, lines is not None, enforced, permitted, last)


def _parse(line: bytes) -> tuple[bool, str] | None:
    """Return whether it was enforced, and what was forbidden. A program chooses its own name, so a
    name alone is not enough: the domain must be one that crashd can have.
    """
    if (match := _SELINUX.search(line)) and (match[2].startswith(b"crashd_") or _OURS.search(line)):
        rights, domain, target, kind = (part.decode() for part in match.groups())
        return b" permissive=1" not in line, f"{domain} may not {rights} {kind} of {target}"
    if match := _APPARMOR.search(line):
        name = _NAME.search(line)
        of = f" {name[1].decode('utf-8', 'backslashreplace')}" if name else ""
        return match[1] == b"DENIED", f"the handler's profile forbids {match[2].decode()}{of}"
    return None


def check_denials(denials: Denials) -> Iterator[Check]:
    """Yield the check, if the kernel has SELinux or AppArmor."""
    if not denials.active:
        return
    names = " and ".join(denials.active)
    if not denials.readable:
        yield warned(NAME, f"{names}: no log can be read", "run it as root")
    elif denials.enforced:
        hint = (
            "ausearch -m avc -c crashd-core, or journalctl -k -g 'apparmor='; see crashd-guide(7)"
        )
        yield failed(NAME, f"{denials.enforced} in the last day, the last: {denials.last}", hint)
    elif denials.permitted:
        text = f"{denials.permitted} would be if {names} enforced it, the last: {denials.last}"
        yield warned(NAME, text, "report it before you enforce; see crashd-guide(7)")
    else:
        yield passed(NAME, f"{names}: nothing denied in the last day")
