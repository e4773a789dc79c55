import pytest

from crashd.domain.kdump.permit import build_drop_in, is_writable

STRICT = "[Service]\nProtectSystem=strict\nReadWritePaths=-/var/crash\n"


@pytest.mark.parametrize(
    ("path", "unit", "expected"),
    [
        ("/var/crash", STRICT, True),
        ("/var/crash/host", STRICT, True),
        ("/var/crash-evil", STRICT, False),
        ("/data/crash", STRICT, False),
        ("/data/crash", STRICT + "ReadWritePaths=/srv /data\n", True),
        ("/data/my dumps", STRICT + 'ReadWritePaths="-/data/my dumps" /x\n', True),
        ("/data/50%", STRICT + "ReadWritePaths=/data/50%%\n", True),
        ("/var/crash", STRICT + "ReadWritePaths=\nReadWritePaths=/data\n", False),
        ("/data", STRICT + "# ReadWritePaths=/data\n", False),
        ("/data", STRICT + "ProtectSystem=full\n", True),
        ("/data", "", True),  # no unit: crashd runs without one
    ],
)
def test_directory_is_writable_where_the_unit_says_so(path: str, unit: str, expected: bool) -> None:
    assert is_writable(path, unit) is expected


@pytest.mark.parametrize("path", ["/data/crash", "/data/my dumps", '/d/a"b', "/d/50%", "/d/a\\b"])
def test_drop_in_allows_what_it_is_made_for(path: str) -> None:
    unit = STRICT + build_drop_in([path, "/other"])
    assert is_writable(path, unit)
    assert is_writable("/other", unit)
    assert is_writable("/var/crash", unit)
    assert not is_writable("/usr", unit)


@pytest.mark.parametrize("path", ["/d\nExecStart=/bin/sh", "relative", "/d/../etc", "/d\x1b"])
def test_drop_in_names_no_path_that_would_say_more(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        build_drop_in([path])
