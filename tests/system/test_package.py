"""The Debian package in a container with a systemd of its own: installed, hurt, upgraded, purged.
The tests themselves are the functions of tests/vm/container.sh.
"""

from pathlib import Path

import pytest

from tests.vm import container, package

JOB = container.HERE / "container.sh"


@pytest.fixture(scope="session")
def outcomes(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, container.Outcome]:
    """What became of each test in the container, which is booted once for all."""
    if container.missing():
        pytest.skip(f"not installed: {' '.join(container.missing())}")
    work = tmp_path_factory.mktemp("container")
    found = container.run(deb, work)
    print("exposure:", *(work / "out/exposure").read_text().split())
    return found


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", container.tests_of(JOB))
def test_package(outcomes: dict[str, container.Outcome], name: str) -> None:
    outcome = outcomes.get(name)
    assert outcome is not None, "the container ended before it"
    assert outcome.passed, outcome.log


@pytest.mark.timeout(1500)
def test_package_built_again_is_the_same_to_the_byte(
    deb: Path, wheels: Path, tmp_path: Path
) -> None:
    assert package.build(tmp_path / "again", wheels=wheels).read_bytes() == deb.read_bytes()
