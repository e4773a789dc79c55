"""packaging/crashd-kmsg on hosts that have no log of the kernel to give."""

import errno
import os
import runpy
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "packaging/crashd-kmsg"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EACCES, errno.ENXIO])
def test_a_container_without_kernel_log_is_no_failure(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: str, *_: object) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(PROGRAM))
    assert caught.value.code == 0
    assert capsys.readouterr().err == ""
