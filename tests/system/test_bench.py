"""The benchmark in small: its figures are not judged, but a crash that is lost, cut or spooled past
the daemon fails here.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.cases import CASES
from tests.bench.report import MEMORY
from tests.conftest import CorePatternOwner


@pytest.mark.timeout(400)
def test_quick_benchmark_loses_nothing(
    core_pattern_owner: CorePatternOwner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    del core_pattern_owner  # the right to set kernel.core_pattern, which the benchmark uses
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--no-lock", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    with capfd.disabled():
        print(f"\n{done.stdout}", flush=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    document = json.loads(figures.read_text())
    measured = {name for name, sides in document["cases"].items() if sides[MEMORY]["runs"]}
    left_out = {case.name for case in CASES if not case.quick_runs and case.quick is None}
    assert measured == {case.name for case in CASES} - left_out
