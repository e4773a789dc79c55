"""The id of a host, and that it is the one systemd computes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from crashd.domain.fleet.hostid import APPLICATION_ID, HOST_PATTERN, host_id
from crashd.errors import FormatError

MACHINE = "9c3f0b8d5a4e4f1c8b7a6d5e4f3c2b1a"


def test_host_id_is_stable_and_not_the_machine_id() -> None:
    assert host_id(MACHINE + "\n") == host_id(MACHINE) == "d4a4c38dc77b4d1c8d67c75961da004b"
    assert HOST_PATTERN.fullmatch(host_id(MACHINE))
    assert host_id(MACHINE[::-1]) != host_id(MACHINE)


@pytest.mark.allow_subprocess
def test_host_id_is_what_systemd_computes() -> None:
    program, own = shutil.which("systemd-id128"), Path("/etc/machine-id")
    if program is None or not own.exists() or len(own.read_text()) != 33:
        pytest.skip("no systemd-id128, or no /etc/machine-id, to compare with")
    argv = [program, "machine-id", f"--app-specific={APPLICATION_ID.hex()}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert host_id(own.read_text()) == done.stdout.strip()


@pytest.mark.parametrize("text", ["", "uninitialized\n", "0" * 32, MACHINE[:-1], MACHINE + "\n\n"])
def test_host_id_of_what_is_no_machine_id_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="machine id"):
        host_id(text)
