"""The handler as it is installed: one program that runs under -IS with nothing beside it."""

import ast
import re
from pathlib import Path

from crashd import corehandler
from crashd.store.handlerfile import handler_program, install_handler
from crashd.store.paths import Paths

SOURCE = Path(corehandler.__file__).read_text()


def test_handler_program_lower_part_is_comments_and_gives_the_same_code() -> None:
    program = handler_program().decode()
    fast = {node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)}
    whole = {node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)}
    assert {"main", "hand_over", "collect"} <= fast
    assert {"spool", "copy_core", "copy_proc", "put_file"} <= whole - fast
    lower = "\n".join(line[2:] for line in program.split("\n") if line.startswith("#|"))
    assert {n.name for n in ast.parse(lower).body if isinstance(n, ast.FunctionDef)} == whole - fast


def test_handler_program_keeps_line_numbers() -> None:
    program = handler_program().decode().split("\n")
    source = SOURCE.split("\n")
    assert len(program) == len(source)
    assert all(line in (there, "#|" + there) for line, there in zip(program, source, strict=True))


def test_handler_program_fast_part_uses_nothing_of_the_lower() -> None:
    program = handler_program().decode()
    used = set(re.findall(r"\b(put_file|copy_\w+)\(", re.sub(r"(?m)^#\|.*$", "", program)))
    assert used == set()


def test_handler_is_short_enough_to_compile_at_each_crash() -> None:
    compiled = [n for n in handler_program().decode().split("\n") if not n.startswith("#|")]
    assert len(compiled) < 260
    assert SOURCE.startswith("#!/usr/bin/python3 -IS\n")


def test_install_handler_once_then_nothing_to_do_then_mended(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert install_handler(paths)
    assert paths.handler.stat().st_mode & 0o7777 == 0o755
    assert not install_handler(paths)
    paths.handler.chmod(0o777)
    assert install_handler(paths)
    assert paths.handler.stat().st_mode & 0o7777 == 0o755
    paths.handler.write_bytes(b"evil")
    assert install_handler(paths)
    assert paths.handler.read_bytes() == handler_program()
    assert [p.name for p in paths.handler.parent.iterdir()] == ["crashd-core"]
