"""The id of a host in its fleet: stable, and not the machine id, which is private. Pure."""

import re
from typing import Final

from crashd.errors import FormatError

APPLICATION_ID: Final = bytes.fromhex("5d0fb1c7c5a94c3db1c0f2cb3a5e9e64")
"""crashd's own key; another one would make every host a new one."""
HOST_PATTERN: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MACHINE_ID = re.compile(r"[0-9a-f]{32}\n?", re.ASCII)


def host_id(machine_id: str) -> str:
    """Compute a host's id from the text of /etc/machine-id.

    The same as `systemd-id128 machine-id --app-specific=`APPLICATION_ID.

    Raises:
        FormatError: it is not a machine id: the host has none yet, or the text is another file's.

    Source: sd_id128_get_machine_app_specific(3)
    """
    import hashlib  # only hosts need an id of their own; the pattern is also for listings
    import hmac

    if not _MACHINE_ID.fullmatch(machine_id) or int(machine_id, 16) == 0:
        raise FormatError("/etc/machine-id holds no machine id")
    key = bytes.fromhex(machine_id.strip())
    digest = bytearray(hmac.digest(key, APPLICATION_ID, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x40  # a UUID of version 4, as systemd makes it
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()
