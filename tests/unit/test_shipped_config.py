"""What is shipped for /etc, against the code that it is about."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from crashd.configuration.files import load_files
from crashd.configuration.keys import Section, Settings, known_keys
from crashd.domain.crash.corepattern import build_pattern

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "etc/crashd.toml"
SYSCTL = ROOT / "etc/sysctl.d/60-crashd.conf"


@pytest.fixture(scope="module")
def genconfig() -> ModuleType:
    spec = importlib.util.spec_from_file_location("genconfig", ROOT / "packaging/genconfig.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["etc/crashd.toml", "packaging/man/crashd.toml.5.rst"])
def test_shipped_file_is_what_the_model_says(genconfig: ModuleType, name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == genconfig.OUTPUTS[Path(name)](), "run packaging/genconfig.py"


def test_shipped_toml_as_it_is_changes_nothing(tmp_path: Path) -> None:
    assert set(_leaves(tomllib.loads(SHIPPED.read_text()))) == set()
    copy = tmp_path / "crashd.toml"
    copy.write_bytes(SHIPPED.read_bytes())
    copy.chmod(0o644)
    assert load_files([copy]) == Settings()


def test_shipped_toml_uncommented_is_every_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[a-z_]+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE)
    sections = {key.rpartition(".")[0] for key in known_keys()} | {"retention.process"}
    assert set(_leaves(tomllib.loads(text))) == {*known_keys()} - sections
    copy = tmp_path / "crashd.toml"
    copy.write_text(text)
    copy.chmod(0o644)
    assert load_files([copy]) == Settings()


def test_model_every_key_and_section_has_a_docstring(genconfig: ModuleType) -> None:
    def check(model: type[Section]) -> None:
        texts = genconfig.field_docstrings(model)
        assert model.__doc__ != Section.__doc__
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                check(field.annotation)
            else:
                assert texts[name].endswith("."), name

    check(Settings)


def _leaves(table: dict[str, object], prefix: str = "") -> list[str]:
    found = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _sysctls() -> list[tuple[str, str]]:
    """Read the assignments in their order, as sysctl.d(5) has them."""
    pairs = []
    for line in SYSCTL.read_text().splitlines():
        if line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            pairs.append((key.strip(), value.strip()))
    return pairs


def test_shipped_sysctls_are_what_the_daemon_registers() -> None:
    assert _sysctls() == [
        ("kernel.core_pattern", build_pattern("/usr/libexec/crashd-core")),
        ("kernel.core_pipe_limit", str(Settings().capture.pipe_limit_for(4 << 30))),
        ("fs.suid_dumpable", "2"),  # after core_pattern, or the kernel warns
    ]


def test_shipped_sysctls_each_has_its_reason_above() -> None:
    lines = SYSCTL.read_text().splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), line


MIB = 1 << 20
DAEMON_BYTES, WORKER_BYTES = 200 * MIB, 60 * MIB
"""What the unit's comment says; `test_sec_85` and the bound of records keep to it."""


@pytest.mark.parametrize(
    ("memory", "cpus"), [(512 * MIB, 1), (1024 * MIB, 4), (2048 * MIB, 8), (256 << 30, 64)]
)
def test_unit_has_memory_for_its_buffer_and_workers(memory: int, cpus: int) -> None:
    unit = (ROOT / "systemd/crashd.service").read_text(encoding="utf-8")
    share = re.search(r"^MemoryMax=(\d+)%$", unit, re.MULTILINE)
    assert share is not None
    assert "\nOOMPolicy=continue\n" in unit, "else one worker takes all along"
    capture = Settings().capture
    needed = DAEMON_BYTES + capture.worker_count(cpus) * WORKER_BYTES
    assert capture.buffer_bytes(memory) + needed <= memory * int(share[1]) // 100


def test_packages_have_every_program_by_its_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stage = (ROOT / "packaging/stage.sh").read_text(encoding="utf-8")
    launcher = (ROOT / "packaging/launcher").read_text(encoding="utf-8")
    installed = re.search(r"for name in (.*); do\n.*packaging/launcher", stage)
    assert installed is not None
    assert {name.split("/")[1] for name in installed[1].split()} == {*project["scripts"]}
    for name, place in project["scripts"].items():
        module = place.partition(":")[0]
        branch = "else:" if name == "crashd" else f'if name == "{name}":'
        assert f"{branch}\n    from {module} import " in launcher, name
