import io

import pytest

from crashd.cli.pager import Paged, choose_pager, owns_session, pager_environment


@pytest.mark.parametrize(
    ("environ", "own", "command", "secure"),
    [
        ({}, True, ["less"], False),
        ({}, False, ["less"], True),
        ({"PAGER": "most -w"}, True, ["most", "-w"], False),
        ({"PAGER": "most"}, False, ["less"], True),
        ({"PAGER": "most", "SYSTEMD_PAGERSECURE": "yes"}, True, ["most"], True),
        ({"PAGER": "most", "SYSTEMD_PAGERSECURE": "0"}, False, ["most"], False),
        ({"PAGER": "most", "SYSTEMD_PAGER": "less -Q"}, True, ["less", "-Q"], False),
        ({"PAGER": "less", "SYSTEMD_PAGER": ""}, True, [], True),
        ({"PAGER": "cat"}, True, [], True),
        ({"PAGER": "'unclosed"}, True, ["less"], False),
    ],
)
def test_choose_pager_follows_systemctl(
    environ: dict[str, str], own: bool, command: list[str], secure: bool
) -> None:
    assert choose_pager(environ, owns_session=own) == (command, secure)


def test_choose_pager_of_root_by_sudo_is_none_unless_asked_for() -> None:
    assert choose_pager({"PAGER": "most"}, owns_session=False, is_root=True) == ([], True)
    assert choose_pager({}, owns_session=True, is_root=True) == (["less"], False)
    asked = {"SYSTEMD_PAGERSECURE": "1"}
    assert choose_pager(asked, owns_session=False, is_root=True) == (["less"], True)


def test_owns_session_only_who_logged_in() -> None:
    assert owns_session("1000\n", 1000)
    assert not owns_session("1000", 0)
    assert not owns_session("4294967295", 0)


def test_pager_environment_is_secure_only_by_decision() -> None:
    given = {"LESS": "-X", "LESSSECURE": "0", "HOME": "/"}
    assert pager_environment(given, secure=True) == {
        "LESS": "FRSXMK",
        "LESSCHARSET": "utf-8",
        "LESSSECURE": "1",
        "HOME": "/",
    }
    assert "LESSSECURE" not in pager_environment(given, secure=False)
    assert pager_environment({"SYSTEMD_LESS": "-R"}, secure=True)["LESS"] == "-R"


def test_paged_prints_what_fits_on_the_screen_without_a_pager() -> None:
    terminal = io.StringIO()
    paged = Paged(terminal, 10, 4)
    print("one\n" + "x" * 20, file=paged)
    assert terminal.getvalue() == ""
    paged.finish()
    assert terminal.getvalue() == "one\n" + "x" * 20 + "\n"


@pytest.mark.parametrize("text", ["1\n2\n3\n4", "x" * 31])
def test_paged_starts_the_pager_when_the_screen_is_full(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSTEMD_PAGER", "cat")
    terminal = io.StringIO()
    paged = Paged(terminal, 10, 4)
    print(text, file=paged)
    assert terminal.getvalue() == text + "\n"
    paged.finish()
