import logging

import pytest

from crashd.daemon.main import set_up_logging


@pytest.mark.parametrize("environ", [{}, {"JOURNAL_STREAM": "8:1"}], ids=["stderr", "journal"])
def test_log_shows_what_a_reader_would_not_see(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    set_up_logging(environ)
    logging.getLogger("crashd.test").error("cannot read %s, ignoring", "a\u202eb\u200b\x1b[2J")
    assert "cannot read a\\u202eb\\u200b\\x1b[2J, ignoring\n" in capsys.readouterr().err


def test_log_of_several_lines_has_a_level_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    set_up_logging({"JOURNAL_STREAM": "8:1"})
    logging.getLogger("crashd.test").warning("one\ntwo")
    assert capsys.readouterr().err == "<4>one\n<4>two\n"
