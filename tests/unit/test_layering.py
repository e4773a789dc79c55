"""The law of who may import whom; also inside functions and under TYPE_CHECKING."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTION_LINES_MAX = 50

# ---- the law ----


@dataclass(frozen=True, slots=True)
class Layer:
    """What one module, or all modules below a package, may import."""

    name: str
    crashd: tuple[str, ...]
    """Modules of crashd, and packages with all that is in them."""
    stdlib: frozenset[str] | None = None
    """The only ones of the standard library; None: all but `not_stdlib`."""
    not_stdlib: frozenset[str] = frozenset()


_SYSTEM = frozenset(
    {"_socket", "asyncio", "ctypes", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib"}
    | {
        "_sqlite3",
        "posix",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "subprocess",
    }
    | {"tempfile", "threading", "time"}
)

LAYERS = (
    Layer("crashd.errors", (), stdlib=frozenset()),
    Layer(
        "crashd.records", (), stdlib=frozenset({"__future__", "_operator", "collections", "typing"})
    ),
    Layer(
        "crashd.corehandler",
        (),
        stdlib=frozenset({"posix", "sys", "time", "_socket", "errno", "_signal"}),
    ),
    Layer(
        "crashd.base",
        ("crashd.base", "crashd.errors", "crashd.records"),
        not_stdlib=frozenset({"asyncio", "logging", "multiprocessing", "sqlite3", "subprocess"}),
    ),
    Layer(
        "crashd.domain",
        ("crashd.domain", "crashd.errors", "crashd.records", "crashd.corehandler"),
        not_stdlib=_SYSTEM,
    ),
    Layer(
        "crashd.store",
        (
            "crashd.store",
            "crashd.base.files",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.corehandler",
        ),
        not_stdlib=frozenset({"logging", "socket", "_socket"}),
    ),
    Layer(
        "crashd.edge",
        (
            "crashd.edge",
            "crashd.base",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.corehandler",
            "crashd.store.paths",
            "crashd.store.trusted",
        ),
        not_stdlib=frozenset({"logging", "sqlite3"}),
    ),
    Layer(
        "crashd.analyzers",
        (
            "crashd.analyzers",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.edge.sandbox.confine",
            "crashd.edge.sandbox.modulefiles",
            "crashd.edge.sandbox.workerlink",
            "crashd.store.coreread",
        ),
        not_stdlib=frozenset({"asyncio", "logging", "multiprocessing", "sqlite3", "threading"}),
    ),
    Layer(
        "crashd.analysisresult",
        ("crashd.domain", "crashd.errors", "crashd.records"),
        not_stdlib=_SYSTEM,
    ),
    Layer(
        "crashd.configuration.files",
        (
            "crashd.configuration",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.store.paths",
            "crashd.store.trusted",
        ),
        not_stdlib=frozenset({"logging", "socket", "_socket"}),
    ),
    Layer(
        "crashd.configuration",
        ("crashd.configuration", "crashd.domain", "crashd.errors", "crashd.records"),
        not_stdlib=_SYSTEM,
    ),
    Layer(
        "crashd.registration",
        (
            "crashd.domain",
            "crashd.edge.capture.kernelsock",
            "crashd.edge.capture.process",
            "crashd.edge.host.sysctl",
            "crashd.errors",
            "crashd.records",
            "crashd.store",
        ),
        not_stdlib=frozenset({"logging", "sqlite3"}),
    ),
    Layer(
        "crashd.daemon",
        (
            "crashd.daemon",
            "crashd.base",
            "crashd.registration",
            "crashd.analysisresult",
            "crashd.configuration",
            "crashd.edge",
            "crashd.store",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.corehandler",
        ),
    ),
    Layer(
        "crashd.fleet",
        (
            "crashd.fleet",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.edge.fleet",
            "crashd.edge.web.metricsserver",
            "crashd.store.corefile",
        ),
        not_stdlib=frozenset({"asyncio", "multiprocessing", "sqlite3", "subprocess"}),
    ),
    Layer(
        "crashd.cli",
        (
            "crashd.cli",
            "crashd.fleet",
            "crashd.edge.fleet",
            "crashd.base",
            "crashd.registration",
            "crashd.configuration",
            "crashd.store",
            "crashd.domain",
            "crashd.errors",
            "crashd.records",
            "crashd.edge.host.sysctl",
            "crashd.edge.capture.process",
            "crashd.edge.host.kdumpfacts",
            "crashd.edge.sandbox.modulefiles",
            "crashd.edge.host.clock",
            "crashd.edge.host.hostfacts",
            "crashd.edge.host.needed",
            "crashd.edge.sandbox.loanedid",
        ),
    ),
    Layer(
        "crashd.ship",
        (
            "crashd.ship",
            "crashd.base",
            "crashd.domain",
            "crashd.edge.capture.process",
            "crashd.edge.fleet",
            "crashd.errors",
            "crashd.records",
            "crashd.store.corefile",
            "crashd.store.paths",
        ),
        not_stdlib=frozenset({"asyncio", "logging", "multiprocessing", "sqlite3", "subprocess"}),
    ),
    Layer("crashd.__main__", ("crashd.daemon.main",)),
    Layer("crashd", ()),  # last: crashd/__init__.py, and whatever has no layer
)

ONLY_IN = {
    "pyinotify": ("crashd.edge.host.inotify",),
    "systemd": ("crashd.edge.host.sdaemon",),
    "prometheus_client": ("crashd.edge.web.exporter", "crashd.edge.fleet.metrics"),
    "psycopg": ("crashd.edge.fleet.postgres",),
    "subprocess": (
        "crashd.edge.sandbox.start",
        "crashd.edge.host.hooks",
        "crashd.edge.host.packages",
    ),
    "pyseccomp": ("crashd.edge.sandbox.confine",),
    "zstandard": ("crashd.store.corefile", "crashd.store.coreread"),
    "pydantic": (
        "crashd.configuration.keys",
        "crashd.configuration.values",
        "crashd.analysisresult",
    ),
    "pydantic_core": ("crashd.configuration.values", "crashd.fleet.usual"),
    "drgn": (
        "crashd.analyzers.drgnprogram",
        "crashd.analyzers.framenames",
        "crashd.analyzers.stacks",
        "crashd.analyzers.kernel_log",
        "crashd.analyzers.kernel_core",
        "crashd.analyzers.kernelmodule",
    ),
    "_drgn_util": ("crashd.analyzers.drgnprogram",),
    "rust_demangler": ("crashd.analyzers.demangle",),
    "capstone": ("crashd.analyzers.instruction",),
    "pystack": ("crashd.analyzers.pythonstack",),
    "yaml": ("crashd.edge.web.yamltext",),
    "obstore": ("crashd.edge.fleet.bucket", "crashd.edge.fleet.objects"),
    "pyrage": ("crashd.edge.fleet.age",),
    "bcrypt": ("crashd.edge.web.basicauth",),
}
"""Who may import a foreign package (and `subprocess`); packages not named here nobody may. There is
a second one only where the first is on the other side of the sandbox's wall, or the package's speed
is the reason."""

WINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "crashd.domain": {
        "elf": (),
        "crash": ("elf",),
        "kernellog": ("elf.headers",),
        "kdump": ("crash", "elf.headers", "kernellog"),
        "cause": (),
        "keep": ("crash", "elf"),
        "host": ("crash", "kdump"),
        "web": (),
        "fleet": ("crash",),
    },
    "crashd.edge": {"capture": (), "fleet": (), "host": ("capture",), "sandbox": (), "web": ()},
    "crashd.daemon": {
        "capture": (),
        "after": (),
        "intake": ("after", "capture"),
        "kernel": ("after",),
        "web": (),
        "fleet": ("after.captures",),
    },
    "crashd.cli": {
        "show": (),
        "open": ("show",),
        "manage": ("show",),
        "check": ("manage",),
        "fleet": ("manage", "show"),
    },
}
"""What a floor's wings are about, and which of its other wings (or modules there) each may import.
They form no circle. The kernel's crashes know neither processes' cores nor how they are read."""

EXCEPTIONS = {
    (
        "crashd.edge.host.inotify",
        "logging",
    ): "pyinotify logs what it also raises, and has to be silenced",
}
"""Imports that a layer forbids and one module needs, with the reason."""

LIGHT = {
    "crashd.cli.main": ("pydantic", "prometheus_client", "systemd", "pyinotify"),
    "crashd.daemon.main": ("pydantic", "prometheus_client", "systemd", "pyinotify", "sqlite3"),
    "crashd.daemon.service": (
        *("yaml", "bcrypt", "obstore", "pyrage"),
        "crashd.domain.cause.explain",
        "crashd.domain.kernellog.analyse",
    ),
    "crashd.ship.main": ("pydantic", "prometheus_client", "systemd", "sqlite3"),
    "crashd.daemon.after.analysis": ("drgn", "capstone", "pystack", "pyseccomp"),
    "crashd.analyzers.main": (
        "crashd.domain.crash.model",
        "crashd.analyzers.pythonstack",
        "crashd.analyzers.script",
        "crashd.analyzers.unwind386",
        "hashlib",
        "pystack",
    ),
}
"""What importing a module must not load: crashctl and the daemon start fast, the capture workers
are small, and most of the time of a small core's analysis is imports.
"""

# ---- its application ----


def list_modules() -> dict[str, Path]:
    """Map each module of crashd to its file."""
    modules = {}
    for path in sorted((ROOT / "crashd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = list_modules()


def is_within(module: str, package: str) -> bool:
    """Tell whether `module` is `package` or lies below it."""
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> Layer:
    """Find the layer of a module."""
    return next(layer for layer in LAYERS if is_within(module, layer.name))


def find_imports(tree: ast.AST, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield line and name of each module imported; "" for what cannot be told."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(level=0, module=str(package), names=names):
                for alias in names:
                    inner = f"{package}.{alias.name}"
                    yield node.lineno, inner if inner in known else package
            case ast.ImportFrom():
                yield node.lineno, ""
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="__import__" | "import_module"),
                args=[name, *_],
            ):
                yield node.lineno, known_part(name)


def known_part(name: ast.expr) -> str:
    """Tell what a computed import is sure to import; the package of `f"package.{x}"`."""
    match name:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return text.rpartition(".")[0]
    return ""


def judge(module: str, imported: str) -> str | None:
    """Say what is wrong with one import; None when nothing is."""
    layer = layer_of(module)
    package = imported.partition(".")[0]
    if (module, imported) in EXCEPTIONS:
        return None
    if not imported:
        return "imports by a relative or computed name"
    if package in ONLY_IN:
        owners = ONLY_IN[package]
        return None if module in owners else f"{package} is for {' and '.join(owners)} only"
    if package == "crashd":
        # Its __init__ holds the version and nothing else.
        own = layer.stdlib is None and imported == "crashd"
        allowed = own or any(is_within(imported, name) for name in layer.crashd)
    elif package in sys.stdlib_module_names:
        allowed = package in layer.stdlib if layer.stdlib is not None else True
        allowed = allowed and package not in layer.not_stdlib
    else:
        return f"{package} is neither ours nor of the standard library"
    if not allowed:
        return f"{layer.name} may not import {imported}"
    return judge_wings(module, imported)


def judge_wings(module: str, imported: str) -> str | None:
    """Say what is wrong with an import between wings of one floor; None when nothing is."""
    floor = next((name for name in WINGS if is_within(module, name)), None)
    if floor is None or not is_within(imported, floor):
        return None
    own, target = module[len(floor) + 1 :], imported[len(floor) + 1 :]
    wing, other = own.partition(".")[0], target.partition(".")[0]
    wings = WINGS[floor]
    if wing not in wings or other not in wings or wing == other:
        return None
    allowed = any(is_within(target, name) for name in wings[wing])
    return None if allowed else f"{floor}.{wing} may not know {imported}"


def find_violations(module: str, source: str, known: frozenset[str]) -> list[str]:
    """List what is wrong with the source of one module."""
    tree = ast.parse(source)
    found = [
        f"{module}:{line}: {wrong}"
        for line, imported in find_imports(tree, known)
        if (wrong := judge(module, imported)) is not None
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{module}:{node.lineno}: {node.name} has {lines} lines")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_obeys_the_law(module: str) -> None:
    source = MODULES[module].read_text()
    assert find_violations(module, source, frozenset(MODULES)) == []


def test_every_part_of_crashd_has_a_layer() -> None:
    parts = {".".join(module.split(".")[:2]) for module in MODULES}
    assert parts <= {layer.name for layer in LAYERS}


def test_every_package_of_a_floor_is_a_wing() -> None:
    for floor, wings in WINGS.items():
        directories = {
            path.parent.name for path in (ROOT / floor.replace(".", "/")).glob("*/__init__.py")
        }
        assert directories == set(wings), floor


def test_wings_know_each_other_in_one_direction() -> None:
    for floor, wings in WINGS.items():
        known = {wing: {name.partition(".")[0] for name in wings[wing]} for wing in wings}
        order = graphlib.TopologicalSorter(known)
        assert len(tuple(order.static_order())) == len(wings), floor


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("module", LIGHT)
def test_import_of_module_stays_light(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded.isdisjoint(LIGHT[module])


# ---- the law can be broken ----

KNOWN = frozenset(
    {
        "crashd",
        "crashd.base.files",
        "crashd.base.messages",
        "crashd.registration",
        "crashd.cli.main",
        "crashd.configuration.keys",
        "crashd.daemon.main",
        "crashd.edge.host.sysctl",
    }
    | {"crashd.edge.host.inotify", "crashd.store.index", "crashd.store.paths"}
)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("crashd.errors", "import os"),
        ("crashd.errors", "from crashd import __version__"),
        ("crashd.corehandler", "import os"),
        ("crashd.corehandler", "def f():\n    import json"),
        ("crashd.corehandler", "import crashd.errors"),
        ("crashd.domain.text", "import os.path"),
        ("crashd.domain.text", "from pathlib import Path"),
        ("crashd.domain.text", "from logging import getLogger"),
        ("crashd.domain.text", "import pydantic"),
        ("crashd.domain.text", "from crashd.store import paths"),
        ("crashd.domain.text", "from crashd.base.files import write_all"),
        ("crashd.base.files", "from crashd.domain import text"),
        ("crashd.base.files", "import logging"),
        ("crashd.store.index", "from crashd.base import messages"),
        ("crashd.domain.text", "from crashd.configuration import keys"),
        ("crashd.domain.text", "from . import signals"),
        ("crashd.domain.text", "__import__('os')"),
        ("crashd.domain.text", "import importlib\nimportlib.import_module(text)"),
        ("crashd.cli.main", "import_module(f'crashd.daemon.{verb}')"),
        ("crashd.cli.main", "import_module(f'{verb}')"),
        ("crashd.store.index", "import logging"),
        ("crashd.store.index", "import socket"),
        ("crashd.store.index", "import subprocess"),
        ("crashd.store.index", "import zstandard"),
        ("crashd.store.index", "from crashd.edge.host import sysctl"),
        ("crashd.store.index", "from crashd.configuration.keys import Settings"),
        ("crashd.edge.capture.process", "import logging"),
        ("crashd.edge.capture.process", "import subprocess"),
        ("crashd.edge.capture.process", "import pyinotify"),
        ("crashd.edge.capture.process", "from systemd import journal"),
        ("crashd.edge.capture.process", "import prometheus_client.core"),
        ("crashd.edge.capture.process", "from crashd.store import index"),
        ("crashd.edge.capture.process", "from crashd.daemon.main import main"),
        ("crashd.edge.capture.process", "from crashd.configuration import keys"),
        ("crashd.configuration.keys", "from crashd.store import index"),
        ("crashd.configuration.keys", "from crashd.edge.host import sysctl"),
        ("crashd.daemon.service", "from crashd.cli import main"),
        ("crashd.daemon.service", "import crashd.cli"),
        ("crashd.daemon.service", "import pydantic"),
        ("crashd.daemon.service", "import requests"),
        ("crashd.daemon.service", "import subprocess"),
        ("crashd.cli.main", "from crashd.daemon import main"),
        ("crashd.cli.main", "from crashd.edge import inotify"),
        ("crashd.cli.main", "def f():\n    import subprocess"),
        ("crashd.__main__", "from crashd.cli.main import main"),
        ("crashd", "from crashd.errors import CrashdError"),
        ("crashd.registration", "import logging"),
        ("crashd.registration", "from crashd.configuration.keys import Settings"),
        ("crashd.store.index", "from crashd import registration"),
        ("crashd.domain.kernellog.title", "from crashd.domain.elf import elfcore"),
        ("crashd.domain.kdump.vmcore", "from crashd.domain.elf.minicore import plan"),
        ("crashd.domain.kdump.vmcore", "from crashd.domain.elf.elfnotes import Notes"),
        ("crashd.domain.elf.minicore", "from crashd.domain.kdump import vmcore"),
        ("crashd.domain.crash.record", "from crashd.domain.cause import explain"),
        ("crashd.newcomer", "from crashd.configuration import keys"),
        ("crashd.domain.text", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    ],
)
def test_find_violations_of_a_breach_names_it(module: str, source: str) -> None:
    assert len(find_violations(module, source, KNOWN)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("crashd.corehandler", "import posix\nfrom _socket import socket"),
        ("crashd.domain.text", "import re\nfrom crashd.domain import signals"),
        ("crashd.domain.text", "from crashd import __version__"),
        ("crashd.store.corefile", "import os, zstandard"),
        ("crashd.edge.host.inotify", "import pyinotify\nfrom crashd.store.paths import Paths"),
        ("crashd.edge.host.inotify", "from crashd.store import paths"),
        ("crashd.edge.sandbox.start", "import subprocess"),
        ("crashd.configuration.keys", "from pydantic import BaseModel"),
        (
            "crashd.daemon.service",
            "import logging\nfrom crashd import __version__\nfrom crashd.configuration import keys",
        ),
        ("crashd.cli.main", "from crashd.edge.host import sysctl\nfrom crashd.store import index"),
        ("crashd.cli.main", "import_module(f'crashd.cli.{verb}')"),
        ("crashd.domain.text", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)),
    ],
)
def test_find_violations_of_what_is_allowed_is_empty(module: str, source: str) -> None:
    assert find_violations(module, source, KNOWN) == []


@pytest.mark.parametrize("module", MODULES)
def test_long_module_says_why(module: str) -> None:
    """More than 400 lines need a reason in the module's docstring."""
    text = MODULES[module].read_text()
    if text.count("\n") > 400:
        reason = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
        assert re.search(r"400 lines|one idea|despite its length", reason), module
