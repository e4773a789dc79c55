"""Crashes of small programs in C, C++, Rust and Go, each with its true cause: what gdb and the
kernel's log say of it. The table is tests/data/programs.txt.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.test_analysis import Crasher, analyse_death, crasher

__all__ = ["crasher"]

SOURCES = Path(__file__).parent / "programs" / "cases"
TABLE = Path(__file__).parents[1] / "data" / "programs.txt"
_C = ["gcc", "-O2", "-g", "-w", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-pthread"]
_MUSL = ["musl-gcc", "-O2", "-g", "-w", "-fstack-protector-strong"]
_CXX = ["g++", "-O2", "-g", "-w", "-std=c++20", "-D_GLIBCXX_ASSERTIONS", "-pthread"]
_RUST_NAMELESS = ["-C", "panic=abort", "-C", "strip=symbols"]
BUILDS = {
    "c1": [*_C, "c1.c"],
    "c1_static": [*_C, "-static", "c1.c"],
    "c1_nameless": [*_C, "-static", "-s", "c1.c"],
    "c1_32": [*_C, "-m32", "c1.c"],
    "c3": [*_C, "c3.c"],
    "c3_rebuilt": ["gcc", "-O1", "-g", "-w", "-fno-pie", "-no-pie", "-pthread", "c3.c"],
    "c3_trapv": ["gcc", "-O1", "-g", "-w", "-ftrapv", "c3.c"],
    "c3_ubsan": ["gcc", "-O1", "-g", "-w", "-fsanitize=undefined", "-fno-sanitize-recover", "c3.c"],
    "c3_trap": ["clang", "-O1", "-g", "-w", "-fsanitize=undefined", "-fsanitize-trap=all", "c3.c"],
    "c4": [*_C, "c4.c"],
    "c4_32": [*_C, "-m32", "c4.c"],
    "c5": [*_C, "c5.c"],
    "mu": [*_MUSL, "mu.c"],
    "mu_static": [*_MUSL, "-static", "mu.c"],
    "cx": [*_CXX, "cx.cc"],
    "cx_nameless": [*_CXX, "-static", "-s", "cx.cc"],
    "asan": ["gcc", "-O1", "-g", "-w", "-fsanitize=address", "-pthread", "san.c"],
    "r": ["rustc", "-O", "-g", "-A", "warnings", "-C", "panic=abort", "r.rs"],
    "r_nameless": ["rustc", "-O", "-A", "warnings", *_RUST_NAMELESS, "r.rs"],
    "r_rebuilt": ["rustc", "-A", "warnings", "-C", "opt-level=1", *_RUST_NAMELESS, "r.rs"],
    "g": ["go", "build", "g.go"],
    "gc": ["go", "build", "gc.go"],
}


def read_table() -> list[tuple[str, str, str, str]]:
    """Program, word, title, and a pattern that the explanation has."""
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if line[:1] not in "#"]
    return [(*row[0].split(" "), row[1], row[2]) for row in rows]  # type: ignore[misc]


HAS_32 = (
    shutil.which("gcc") is not None
    and subprocess.run(
        ["gcc", "-m32", "-xc", "-", "-o", "/dev/null"],
        input=b"int main(void) { return 0; }",
        capture_output=True,
        check=False,
    ).returncode
    == 0
)
"""Whether 32-bit programs can be compiled and linked (gcc-multilib)."""
CASES = [
    row
    for row in read_table()
    if shutil.which(BUILDS[row[0]][0]) and (HAS_32 or "-m32" not in BUILDS[row[0]])
]


class Programs:
    """The programs, compiled when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, name: str) -> Path:
        """Compile a program, once."""
        target = self._directory / name
        if not target.exists():
            *command, source = BUILDS[name]
            subprocess.run(
                [*command, "-o", target, SOURCES / source],
                check=True,
                env=None,
                cwd=self._directory,
            )
        return target


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "abort_on_error=1:disable_coredump=0")
    monkeypatch.setenv("UBSAN_OPTIONS", "abort_on_error=1")
    monkeypatch.setenv("GO111MODULE", "off")
    monkeypatch.setenv("GOCACHE", str(tmp_path_factory.getbasetemp() / "go"))


@pytest.mark.parametrize(
    ("name", "word", "title", "pattern"), CASES, ids=[f"{row[0]}-{row[1]}" for row in CASES]
)
def test_program_has_its_true_cause(
    crasher: Crasher, programs: Programs, name: str, word: str, title: str, pattern: str
) -> None:
    analysis = analyse_death(crasher.run(programs.get(name), word))
    assert analysis.title == title
    assert re.search(pattern, analysis.explanation or ""), analysis.explanation


def test_static_and_dynamic_program_name_the_same_places() -> None:
    """A bug has one place, however the program was linked."""
    titles = {(row[0], row[1]): row[2] for row in read_table()}
    both = [word for name, word in titles if name == "c1_static"]
    assert len(both) > 4
    for word in both:
        static = titles["c1_static", word].replace("c1_static", "c1")
        assert static == titles["c1", word]


@pytest.mark.parametrize("word", ["text_table", "thread_array", "run_code"])
def test_two_builds_in_two_places_have_one_signature(
    crasher: Crasher, programs: Programs, tmp_path: Path, word: str
) -> None:
    """As on two hosts, and in two containers."""
    found = []
    for build in ("c3", "c3_rebuilt"):
        place = tmp_path / build / "c3"
        place.parent.mkdir()
        shutil.copy(programs.get(build), place)
        found.append(analyse_death(crasher.run(place, word)))
    assert found[0].title == found[1].title
    assert found[0].signature == found[1].signature
    modules = [analysis.facts.modules for analysis in found if analysis.facts is not None]
    assert modules[0][0].build_id != modules[1][0].build_id


def test_static_program_without_names_says_what_happened(
    crasher: Crasher, programs: Programs
) -> None:
    """abort() and what glibc said are found without symbols; each bug has its own signature."""
    said = {
        "tcache_df": "free(): double free detected in tcache 2",
        "do_assert": 'assertion `queue_len<10 && "queue overflow"\' failed',
        "smash": "stack smashing",
        "app_fatal": "abort()",
    }
    signatures = set()
    for word, short in said.items():
        analysis = analyse_death(crasher.run(programs.get("c1_nameless"), word))
        assert analysis.title is not None
        assert analysis.title.endswith(f": {short}"), analysis.title
        assert analysis.facts is not None
        assert "abort" in [frame.function for frame in analysis.facts.crashed]
        signatures.add(analysis.signature)
    assert len(signatures) == len(said)


def test_static_cxx_program_without_names_has_its_exception(
    crasher: Crasher, programs: Programs
) -> None:
    analysis = analyse_death(crasher.run(programs.get("cx_nameless"), "load_config"))
    assert analysis.title is not None
    assert analysis.title.endswith(": uncaught std::runtime_error"), analysis.title
    assert "cannot read /etc/app.conf" in (analysis.explanation or "")


@pytest.mark.skipif(shutil.which("rustc") is None, reason="needs rustc")
def test_rust_panic_without_names_is_the_same_in_two_builds(
    crasher: Crasher, programs: Programs, tmp_path: Path
) -> None:
    """On another host and in a container the program may lie elsewhere, too."""
    moved = tmp_path / "elsewhere" / "r"
    moved.parent.mkdir()
    shutil.copy(programs.get("r_rebuilt"), moved)
    first = tmp_path / "here" / "r"
    first.parent.mkdir()
    shutil.copy(programs.get("r_nameless"), first)
    found = [analyse_death(crasher.run(program, "slice_oob")) for program in (first, moved)]
    assert re.fullmatch(r"SIGABRT in r, cases/r\.rs:\d+: Rust panic", found[0].title or "")
    assert "range end index 9 out of range" in (found[0].explanation or "")
    assert found[0].title == found[1].title
    assert found[0].signature == found[1].signature
    other = analyse_death(crasher.run(first, "parse_port"))
    assert other.signature != found[0].signature
