from types import SimpleNamespace
from typing import Any

import pytest

from crashd.analyzers.languages import analyzers_of


def opened(*names: bytes) -> Any:
    return SimpleNamespace(files=[SimpleNamespace(module=SimpleNamespace(name=n)) for n in names])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], []),
        ([b"/usr/bin/true", b"/usr/lib/libc.so.6", b"/srv/python/app", b"[vdso]"], []),
        ([b"/usr/bin/python3.11"], ["PythonStacks"]),
        ([b"/usr/sbin/uwsgi", b"/usr/lib/libpython3.13.so.1.0"], ["PythonStacks"]),
        ([b"/usr/sbin/apache2", b"/usr/lib/apache2/modules/libphp8.2.so"], ["PhpStacks"]),
        ([b"php-fpm8.4"], ["PhpStacks"]),
        ([b"/usr/bin/nmap", b"/usr/lib/liblua5.4.so.0.0.0"], ["LuaStacks"]),
        (
            [b"/usr/bin/vim", b"libruby-3.1.so.3.1", b"libperl.so.5.36"],
            ["PerlStacks", "RubyStacks"],
        ),
    ],
)
def test_analyzers_of_a_program_are_those_of_its_interpreters(
    names: list[bytes], chosen: list[str]
) -> None:
    found = [kind.__name__ for kind in analyzers_of(opened(*names))]
    assert found == ["NativeFacts", *chosen]
