import os
from pathlib import Path

import pytest

from crashd.domain.elf.vmlinux import module_name, module_places
from crashd.store.modulefiles import find_modules, open_modules

RELEASE = "6.1.0-1-amd64"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"ELF")
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("snd-hda-intel.ko", "snd_hda_intel"),
        ("nf_tables.ko.debug", "nf_tables"),
        ("xfs.ko.xz", None),
        ("vmlinux", None),
        ("modules.dep", None),
        ("x" * 65 + ".ko", None),
        ("a\nb.ko", None),
    ],
)
def test_module_name_is_the_kernels(file: str, name: str | None) -> None:
    assert module_name(file) == name


def test_release_that_leads_elsewhere_has_no_places() -> None:
    assert module_places("../../home/x") == ()
    assert module_places(None) == ()
    assert module_places(RELEASE, ["/srv/symbols/"])[-2:] == (
        f"srv/symbols/lib/modules/{RELEASE}",
        f"lib/modules/{RELEASE}",
    )


def test_file_with_debug_information_is_found_before_the_stripped_one(tmp_path: Path) -> None:
    put(tmp_path / f"lib/modules/{RELEASE}/kernel/drivers/net/dummy.ko")
    put(tmp_path / f"lib/modules/{RELEASE}/updates/dkms/own-module.ko")
    put(tmp_path / "lib/modules/other/kernel/gone.ko")
    debug = put(tmp_path / f"usr/lib/debug/lib/modules/{RELEASE}/kernel/drivers/net/dummy.ko")
    found = find_modules(tmp_path, RELEASE, ["dummy", "own_module", "gone"])
    assert found["dummy"] == debug
    assert sorted(found) == ["dummy", "own_module"]
    assert find_modules(tmp_path, "../..", ["dummy"]) == {}


def test_number_of_files_that_are_looked_at_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashd.store.modulefiles.FILES_MAX", 5)
    for number in range(3):
        for other in range(4):
            put(tmp_path / f"lib/modules/{RELEASE}/{number}/x{number}{other}.ko")
    names = [f"x{number}{other}" for number in range(3) for other in range(4)]
    assert len(find_modules(tmp_path, RELEASE, names)) == 8


def test_what_is_no_regular_file_or_a_link_is_not_opened(tmp_path: Path) -> None:
    place = tmp_path / f"lib/modules/{RELEASE}"
    good = put(place / "good.ko")
    (place / "link.ko").symlink_to(good)
    os.mkfifo(place / "fifo.ko")
    found = find_modules(tmp_path, RELEASE, ["good", "link", "fifo"])
    opened = open_modules({**found, "missing": place / "missing.ko"})
    assert list(opened) == ["good"]
    os.close(opened["good"])
