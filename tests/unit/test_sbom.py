"""packaging/sbom.py: the list of what the packages bring has everything, or is not made."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging/sbom.py"


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """One bundle with drgn and its libraries."""
    site = tmp_path / "python3.14"
    about = site / "drgn-0.3.0.dist-info"
    (about / "sboms").mkdir(parents=True)
    (about / "METADATA").write_text("Name: drgn\nVersion: 0.3.0\nLicense-Expression: GPL-3.0\n")
    crates = [
        {"purl": "pkg:cargo/memchr@2.7.6", "licenses": [{"expression": "MIT OR Unlicense"}]},
        {"purl": "pkg:cargo/ring@0.17.14", "licenses": [{"license": {"name": "ring's"}}]},
        {"purl": "pkg:cargo/bare@1.0.0?vcs_url=git"},
    ]
    (about / "sboms/drgn.cyclonedx.json").write_text(json.dumps({"components": crates}))
    (site / "drgn.libs").mkdir()
    for name, content in (
        ("libdebuginfod-0-a2f74d29.196.so", b""),
        ("libdw-0-351e48f3.196.so", b""),
        ("libpcre2-8-afe25986.so.0.16.1", b"\0PCRE2_10.47\0"),
        ("libkdumpfile-8796b086.so.12.0.0", b""),
    ):
        (site / "drgn.libs" / name).write_bytes(content)
    return tmp_path


def test_libraries_have_the_version_that_their_file_says(sbom: ModuleType, bundles: Path) -> None:
    found = {str(component.purl) for component in sbom._libraries(bundles)}
    assert found == {
        "pkg:generic/elfutils@0.196",
        "pkg:generic/pcre2@10.47",
        "pkg:generic/libkdumpfile",
    }


def test_python_package_has_its_licence(sbom: ModuleType, bundles: Path) -> None:
    (drgn,) = sbom._python_packages(bundles)
    assert str(drgn.purl) == "pkg:pypi/drgn@0.3.0"
    assert [licence.name for licence in drgn.licenses] == ["GPL-3.0"]


def test_crates_have_the_licences_of_their_wheel(sbom: ModuleType, bundles: Path) -> None:
    found = {str(crate.purl): [it.name for it in crate.licenses] for crate in sbom._crates(bundles)}
    assert found == {
        "pkg:cargo/memchr@2.7.6": ["MIT OR Unlicense"],
        "pkg:cargo/ring@0.17.14": ["ring's"],
        "pkg:cargo/bare@1.0.0": [],
    }


def test_unknown_library_ends_the_build(sbom: ModuleType, bundles: Path) -> None:
    (bundles / "python3.14/drgn.libs/libssl-8248cfc9.so.1.1.1k").touch()
    with pytest.raises(SystemExit, match="libssl"):
        list(sbom._libraries(bundles))
