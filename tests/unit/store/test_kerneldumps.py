from pathlib import Path

import pytest

from crashd.store.kerneldumps import DumpRoot


def test_names_beyond_the_limit_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashd.store.kerneldumps.NAMES_MAX", 3)
    monkeypatch.setattr("crashd.store.kerneldumps.COUNTED_MAX", 8)
    with DumpRoot(tmp_path) as root:
        assert (list(root.list()), root.unseen) == ([], 0)
        for minute in range(5):
            (tmp_path / f"2026010112{minute:02}").mkdir()
        assert (len(list(root.list())), root.unseen) == (3, 2)
        for minute in range(20, 40):
            (tmp_path / f"2026010112{minute:02}").mkdir()
        assert (len(list(root.list())), root.unseen) == (3, 6)  # counting has a limit, too
