"""The Debian package in a guest of its own kernel, which really panics; collected only with
CRASHD_TEST_VM=1 (see conftest.py), for it takes minutes. The tests are the functions of
tests/vm/guest.sh.
"""

from pathlib import Path

import pytest

from tests.vm import container, guest, package

JOB = guest.HERE / "guest.sh"


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, container.Outcome]:
    """What became of each test in the guest, which is booted once for all."""
    work: Path = tmp_path_factory.mktemp("guest")
    return guest.run_tests(package.build(work), work)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", container.tests_of(JOB))
def test_guest(outcomes: dict[str, container.Outcome], name: str) -> None:
    outcome = outcomes.get(name)
    assert outcome is not None, "the guest ended before it"
    assert outcome.passed, outcome.log
