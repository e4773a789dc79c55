"""All that crashd-guide(7) shows is run, or read by the program that it is for. What needs crashd
to be installed is run by the container's tests (tests/vm).
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from crashd.configuration.keys import Settings
from crashd.domain.web.webconfig import parse_web_config
from tests import guide
from tests.running import DEFAULT_CONFIG, Daemon

AS_ON_A_HOST = DEFAULT_CONFIG.replace("127.0.0.1:0", "127.0.0.1:9816").replace(
    "[analysis]\nenabled = false\n", ""
)
MAY_FIND_SOMETHING = re.compile(r"crashctl (doctor|kdump|list --kind kernel)")
"""These exit with 1 for what they find, or do not find, on the machine that the tests run on."""


@pytest.mark.parametrize("daemon", [AS_ON_A_HOST], indirect=True)
def test_commands_do_what_they_are_there_for(
    daemon: Daemon, short_tmp: Path, crash_sleep: Callable[[], int]
) -> None:
    programs = short_tmp / "bin"
    programs.mkdir()
    for name, module in [("crashctl", "crashd.cli"), ("crashd", "crashd")]:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        program.chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CRASHD_ROOT": str(daemon.paths.root),
        "PYTHONPATH": os.getcwd(),
    }
    crash_sleep()
    daemon.wait_for(1)
    commands = guide.commands(of_the_system=False)
    assert len(commands) > 20
    for command in commands:
        if "--debugger gdb" in command and shutil.which("gdb") is None:
            continue
        done = subprocess.run(
            ["sh", "-c", command.replace("/tmp/", f"{short_tmp}/")],
            env=environ,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        allowed = {0, 1} if MAY_FIND_SOMETHING.match(command) else {0}
        assert done.returncode in allowed, (command, done.stdout, done.stderr)
        if not re.match(r"crashctl (verify|vacuum|pin|unpin|install|reindex)|crashd", command):
            assert done.stdout or done.returncode == 1 or "-o " in command, command
    assert (short_tmp / "crashes.html").stat().st_size > 10_000
    assert (short_tmp / "crash.tar.zst").stat().st_size > 10_000


def test_every_file_is_one_that_its_program_takes(tmp_path: Path) -> None:
    seen = set()
    for text in guide.files():
        if text.startswith("["):
            Settings.model_validate(tomllib.loads(text))
            seen.add("crashd.toml")
        elif text.startswith("tls_server_config:"):
            assert parse_web_config(yaml.safe_load(text)).users
            seen.add("web.yml")
        else:
            rules = Path(__file__).parents[2] / "etc"
            path = tmp_path / "prometheus.yml"
            path.write_text(text.replace("/usr/share/crashd", str(rules)))
            subprocess.run(["promtool", "check", "config", path], check=True)
            seen.add("prometheus.yml")
    assert seen == {"crashd.toml", "web.yml", "prometheus.yml"}
