import json
from typing import Any

import pytest

from crashd.domain.elf.packagenote import NT_PACKAGING_METADATA, is_package, parse_package_note
from tests.builders.elfcore import CoreFormat, build_image

NOTE = {
    "type": "rpm",
    "name": "systemd",
    "version": "253.4-1.fc38",
    "architecture": "x86_64",
    "osCpe": "cpe:/o:fedoraproject:fedora:38",
}
FOUND = {"name": "systemd", "version": "253.4-1.fc38"}
FORMATS = pytest.mark.parametrize(
    "form",
    [CoreFormat(), CoreFormat(machine=3, bits=32), CoreFormat(machine=22, byteorder="big")],
    ids=["x86_64", "i386", "s390x"],
)


def image_of(text: bytes, *, owner: bytes = b"FDO\0", form: CoreFormat | None = None) -> bytes:
    """Build an executable's start whose second note is this one."""
    form = form or CoreFormat()
    note = form.note(NT_PACKAGING_METADATA, text, owner)
    before = form.note(3, bytes(20), b"GNU\0")
    image = bytearray(build_image(None, form=form))
    start = len(form.ehdr(0)) + 2 * form.phdr_size
    load = len(form.ehdr(0))
    whole = before + note
    header = form.phdr(4, start, len(whole), vaddr=start, align=4)
    image[load + form.phdr_size : start] = header
    return bytes(image[:start]) + whole


@FORMATS
def test_parse_package_note_finds_name_and_version(form: CoreFormat) -> None:
    text = json.dumps(NOTE).encode() + bytes(3)
    assert parse_package_note(image_of(text, form=form)) == FOUND


def test_parse_package_note_truncated_at_every_length_is_none() -> None:
    text = json.dumps(NOTE).encode()
    image = image_of(text + bytes(-len(text) % 4))
    assert parse_package_note(image) == FOUND
    assert {str(parse_package_note(image[:size])) for size in range(len(image))} == {"None"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'"systemd"',
        b"\xff\xfe{\x00",
        b"[" * 4000,
        b'{"name": "systemd"}',
        b'{"name": "systemd", "version": 253}',
        b'{"name": ["systemd"], "version": "1"}',
        b'{"name": "a b", "version": "1"}',
        b'{"name": "\\u001b[31m", "version": "1"}',
        b'{"name": "--root=/x", "version": "1"}',
        b'{"name": "x", "version": "1\\n2"}',
        b'{"name": "x", "version": "' + b"9" * 200 + b'"}',
        b'{"name": "x", "version": "1", "more": "' + b"9" * 5000 + b'"}',
    ],
)
def test_parse_package_note_hostile_text_is_none(text: bytes) -> None:
    assert parse_package_note(image_of(text)) is None


def test_parse_package_note_of_another_owner_is_none() -> None:
    assert parse_package_note(image_of(json.dumps(NOTE).encode(), owner=b"GNU\0")) is None
    assert parse_package_note(build_image()) is None
    assert parse_package_note(b"#!/bin/sh\n") is None


@pytest.mark.parametrize(
    ("name", "version", "right"),
    [
        ("libstdc++6", "12.2.0-14", True),
        ("0ad", "0.0.26-3", True),
        ("bash", "5.2.15-2+b8", True),
        ("gdm", "2:43.0-3~deb12u1", True),
        ("kernel-core", "6.1^20240101git-1", True),
        ("-x", "1", False),
        ("x", "", False),
        ("x/y", "1", False),
        ("x", "$(id)", False),
        (None, "1", False),
    ],
)
def test_is_package_knows_the_names_of_dpkg_and_rpm(name: Any, version: Any, right: bool) -> None:
    assert is_package(name, version) is right
