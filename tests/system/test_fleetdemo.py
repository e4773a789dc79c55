"""The demo of a fleet, without the building of its environment: a real PostgreSQL, a real S3
service, and a real crash, from the kernel to `crashctl --fleet`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CorePatternOwner

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(280)
def test_demo_shows_a_real_crash_in_the_index_of_a_fleet(
    core_pattern_owner: CorePatternOwner,
) -> None:
    before = {name: core_pattern_owner.read(name) for name in core_pattern_owner.saved}
    trial = Path("/opt/crashd-fleet-test")
    trial.mkdir(mode=0o755, exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "packaging/demo/fleet.py", str(trial)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=270,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "killed by SIGSEGV" in done.stdout and "its core came from s3://" in done.stdout
        assert "COUNT HOSTS VERSIONS" in done.stdout
        assert not list(trial.iterdir())
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    assert {name: core_pattern_owner.read(name) for name in before} == before
