"""Print the CycloneDX list of what a package of crashd brings: Python packages, the Rust crates in
them, and the C libraries that came with their wheels.

    python packaging/sbom.py BUNDLES VERSION

A library that is not in the table below ends the build: what is not listed, no scanner finds.
"""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

_NAMESPACE = uuid.UUID("6b7bc3b2-5d1c-4d2c-a0f4-6a3d7d6d4a1b")
_LIBRARIES = {
    "libaddrxlat": "libkdumpfile",
    "libdebuginfod": "",  # crashd's own: nodebuginfod.c
    "libdw": "elfutils",
    "libelf": "elfutils",
    "libkdumpfile": "libkdumpfile",
    "libpcre2-8": "pcre2",
}
"""The project of a wheel's C library."""
_FILE = re.compile(r"(lib[a-z0-9-]+?)(?:-0)?-[0-9a-f]{8}\.(?:([0-9]+)\.)?so")


def main(bundles: str, version: str) -> int:
    """Print the list; return the exit status."""
    components = {
        str(component.purl): component
        for find in (_python_packages, _crates, _libraries, _linked, _handler)
        for component in find(Path(bundles))
    }
    bom = Bom(
        components=components.values(),
        serial_number=uuid.uuid5(_NAMESPACE, "\n".join([version, *sorted(components)])),
    )
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom.metadata.component = Component(
        name="crashd",
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref="crashd",
        purl=PackageURL("generic", name="crashd", version=version),
    )
    bom.register_dependency(bom.metadata.component, components.values())
    print(JsonV1Dot6(bom).output_as_string())
    return 0


def _python_packages(bundles: Path) -> Iterator[Component]:
    for directory in sorted(bundles.glob("*/*.dist-info")):
        if directory.is_symlink():
            continue
        found: Distribution = PathDistribution(directory)
        name, version = found.metadata["Name"], found.version
        about = found.metadata
        text = next((about[key] for key in ("License-Expression", "License") if key in about), "")
        yield _component(
            PackageURL("pypi", name=name.lower().replace("_", "-"), version=version),
            text.strip().split("\n")[0] or None,
        )


def _crates(bundles: Path) -> Iterator[Component]:
    for path in sorted(bundles.glob("*/*.dist-info/sboms/*.cyclonedx.json")):
        for entry in json.loads(path.read_text(encoding="utf-8"))["components"]:
            purl = PackageURL.from_string(entry["purl"])
            yield _component(
                PackageURL("cargo", name=purl.name, version=purl.version),
                next((_licence(given) for given in entry.get("licenses", ())), None),
            )


def _licence(given: dict[str, Any]) -> str | None:
    """Return a licence as CycloneDX's choice gives it: an expression, an id, or a name."""
    own = given.get("license", {})
    name: str | None = given.get("expression") or own.get("id") or own.get("name")
    return name


def _libraries(bundles: Path) -> Iterator[Component]:
    for path in sorted(bundles.glob("*/*.libs/*.so*")):
        found = _FILE.match(path.name)
        if found is None or found[1] not in _LIBRARIES:
            raise SystemExit(f"sbom.py: what is {path}? Add it to _LIBRARIES")
        if name := _LIBRARIES[found[1]]:
            yield _component(PackageURL("generic", name=name, version=_version(found, path)))
    for path in bundles.glob("*/capstone/lib/libcapstone.so"):
        yield _component(PackageURL("generic", name="capstone", version=_dist(path, "capstone")))


def _version(found: re.Match[str], path: Path) -> str | None:
    """Return what the file or its name says of its version; None if neither does."""
    if found[2]:
        return f"0.{found[2]}"
    version = re.search(rb"PCRE2_([0-9]+\.[0-9]+)\0", path.read_bytes())
    return version[1].decode() if version else None


def _linked(bundles: Path) -> Iterator[Component]:
    """Yield the C libraries that are a part of a Python package's own file."""
    site = bundles / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    code = "import sys; sys.path.insert(0, sys.argv[1]); import zstandard as z; "
    code += "print('zstd', '%d.%d.%d' % z.ZSTD_VERSION)"
    command = [sys.executable, "-IBc", code, str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        name, version = line.split()
        yield _component(PackageURL("generic", name=name, version=version))


def _dist(path: Path, name: str) -> str:
    (directory,) = path.parents[2].glob(f"{name}-*.dist-info")
    return PathDistribution(directory).version


def _handler(bundles: Path) -> Iterator[Component]:
    """Yield the C library that is linked into the static handler."""
    if (bundles / "shared/crashd/native/crashd-core").exists():
        words = subprocess.run(
            ["getconf", "GNU_LIBC_VERSION"], capture_output=True, text=True, check=True
        ).stdout.split()
        yield _component(PackageURL("generic", name=words[0], version=words[1]))


def _component(purl: PackageURL, licence: str | None = None) -> Component:
    return Component(
        name=purl.name,
        version=purl.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        licenses=[DisjunctiveLicense(name=licence)] if licence else (),
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
