"""The handler as it is installed: one program that runs under -IS with nothing beside it."""

import ast
import re
import sys
from pathlib import Path

import pytest

from crashd import corehandler
from crashd.store.handlerfile import (
    install_handler,
    list_programs,
    memory_program,
    native_program,
    python_program,
)
from crashd.store.paths import Paths

SOURCE = Path(corehandler.__file__).read_text()


def test_handler_program_lower_part_is_comments_and_gives_the_same_code() -> None:
    program = python_program().decode()
    fast = {node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)}
    whole = {node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)}
    assert {"main", "hand_over", "collect"} <= fast
    assert {"spool", "copy_core", "copy_proc", "put_file"} <= whole - fast
    lower = "\n".join(line[2:] for line in program.split("\n") if line.startswith("#|"))
    assert {n.name for n in ast.parse(lower).body if isinstance(n, ast.FunctionDef)} == whole - fast


def test_handler_program_keeps_line_numbers() -> None:
    program = python_program().decode().split("\n")
    source = SOURCE.split("\n")
    assert len(program) == len(source)
    assert all(line in (there, "#|" + there) for line, there in zip(program, source, strict=True))


def test_handler_program_fast_part_uses_nothing_of_the_lower() -> None:
    program = python_program().decode()
    used = set(re.findall(r"\b(put_file|copy_\w+)\(", re.sub(r"(?m)^#\|.*$", "", program)))
    assert used == set()


def test_handler_is_short_enough_to_compile_at_each_crash() -> None:
    compiled = [n for n in python_program().decode().split("\n") if not n.startswith("#|")]
    assert len(compiled) < 280
    assert SOURCE.startswith("#!/usr/bin/python3 -IS\n")


def test_memory_program_is_ours_unless_others_can_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.touch()
    monkeypatch.setattr("crashd.store.handlerfile.find_untrusted", lambda path: None)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    assert memory_program() == interpreter
    for untrusted in (interpreter, Path(corehandler.__file__).parent):
        monkeypatch.setattr(
            "crashd.store.handlerfile.find_untrusted",
            lambda path, bad=untrusted: "belongs to uid 1000" if path == bad else None,
        )
        assert memory_program() is None
    for nothing in ("", "python"):
        monkeypatch.setattr(sys, "executable", nothing)
        assert memory_program() is None


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What could be a native handler for this machine."""
    path = tmp_path / "built"
    path.write_bytes(Path(sys.executable).resolve().read_bytes()[:64])
    return path


def test_install_handler_once_then_nothing_to_do_then_mended(tmp_path: Path) -> None:
    paths, built = Paths(tmp_path), tmp_path / "none"
    assert install_handler(paths, built)
    assert paths.handler.stat().st_mode & 0o7777 == 0o755
    assert not install_handler(paths, built)
    paths.handler.chmod(0o777)
    assert install_handler(paths, built)
    assert paths.handler.stat().st_mode & 0o7777 == 0o755
    paths.handler.write_bytes(b"evil")
    assert install_handler(paths, built)
    assert paths.handler.read_bytes() == python_program()
    assert [p.name for p in paths.handler.parent.iterdir()] == ["crashd-core"]


def test_install_handler_native_has_the_python_one_beside_it(tmp_path: Path, built: Path) -> None:
    paths = Paths(tmp_path)
    assert install_handler(paths, built)
    assert not install_handler(paths, built)
    assert paths.handler.read_bytes() == built.read_bytes()
    assert paths.handler_fallback.read_bytes() == python_program()
    paths.handler_fallback.unlink()
    assert install_handler(paths, built)
    assert paths.handler_fallback.stat().st_mode & 0o7777 == 0o755


def test_native_program_for_another_machine_is_not_used(built: Path) -> None:
    assert native_program(built) is not None
    raw = bytearray(built.read_bytes())
    raw[18] ^= 0xFF  # e_machine
    built.write_bytes(raw)
    assert native_program(built) is None
    built.write_bytes(b"")
    assert native_program(built) is None


def test_list_programs_without_a_native_one_is_the_python_one_alone(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert list(list_programs(paths, None)) == [(paths.handler, python_program())]
