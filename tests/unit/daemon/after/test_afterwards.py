"""What follows a capture: which of it runs."""

import logging
import sys
from pathlib import Path

import pytest

from crashd.configuration.keys import Settings
from crashd.daemon.after.afterwards import analysis_settings
from crashd.store.paths import Paths


def test_analyses_are_made_by_default(tmp_path: Path) -> None:
    assert analysis_settings(Settings(), Paths(tmp_path)).enabled


def test_without_drgn_none_are_made_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    with caplog.at_level(logging.WARNING, "crashd.analysis"):
        assert not analysis_settings(Settings(), Paths(tmp_path)).enabled
    assert caplog.messages == ["not installed: drgn: crashes are kept, but not explained"]
