from typing import Any

from crashd.domain.cause.analysis import knowledge


def document(
    found: int = 2, lost: int = 0, named: int = 3, lines: int = 0, **more: Any
) -> dict[str, Any]:
    module = {"problem": None, "used": True, "debug_info": False}
    frame = {"function": "f", "line": None}
    frames = [{**frame, "line": 1}] * lines + [frame] * (named - lines)
    modules = [module] * found + [{**module, "problem": "file is gone"}] * lost
    return {"state": "done", "facts": {"modules": modules, "threads": [{"frames": frames}]}, **more}


def test_knowledge_of_nothing_is_least() -> None:
    failed = {"state": "failed", "facts": None}
    assert knowledge(None) == knowledge(failed) == knowledge({"state": "running"})
    assert knowledge(failed) < knowledge(document(0, 3, 0)) < knowledge(document())
    assert knowledge({"state": "done", "facts": {"modules": [], "threads": []}}) > knowledge(None)


def test_knowledge_is_of_files_then_names_then_lines() -> None:
    assert knowledge(document(2, 0, 3)) == knowledge(document(2, 0, 3))
    # without its file, frames are guessed: more of them is not more
    assert knowledge(document(1, 1, 9)) < knowledge(document(2, 0, 3))
    assert knowledge(document(2, 0, 2)) < knowledge(document(2, 0, 3))
    assert knowledge(document(2, 0, 3)) < knowledge(document(2, 0, 3, 1))
