"""Crashes of script interpreters, with the interpreters that are installed: which functions, files
and lines of the script are found in the core. The scripts say where they are.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashd.domain.cause.analysis import Analysis
from tests.system.test_analysis import Crasher, analyse_death, crasher
from tests.yardstick import slowness

__all__ = ["crasher"]


@dataclass(frozen=True, slots=True)
class Script:
    """A script that crashes its interpreter."""

    name: str
    interpreter: str
    text: str
    frames: tuple[tuple[str, int], ...]
    """Functions and lines, callee first."""
    title: str

    def __str__(self) -> str:
        return self.name


_PHP = """<?php
class Job {
    function step($n) {
        if ($n > 0) return $this->step($n - 1);
        $libc = FFI::cdef("size_t strlen(const char *p);", "libc.so.6");
        return $libc->strlen(FFI::cast("char *", 8));
    }
}
function work() {
    $job = new Job();
    array_map(fn($x) => $job->step($x), [1]);
}

eval("work();");
"""
_PERL = """package Job;
sub step {
    my ($n) = @_;
    return step($n - 1) if $n > 0;
    my $x = unpack("p", pack("Q", 8));
    return $x;
}
package main;
sub work { map { Job::step($_) } (1) }
eval {
    my @sorted = sort {
        work(); $a <=> $b
    } (2, 1);
};
"""
_RUBY = """require "fiddle"
class Job
  def step(n)
    return step(n - 1) if n > 0
    Fiddle::Pointer.new(8)[0]
  end
end
def work
  [1].each do |x|
    Job.new.step(x)
  end
end

work
"""
_PYTHON_DEEP = """import sys
class Job:
    def __repr__(self):
        return repr(self)
def work():
    sys.setrecursionlimit(10**9)
    repr(Job())
work()
"""
_LUA_EXTENSION = """
void lua_pushcclosure(void *state, int (*function)(void *), int upvalues);
int crash(void *state) { return *(volatile int *)8; }
int luaopen_crashes(void *state) { lua_pushcclosure(state, crash, 0); return 1; }
"""
_LUA = """
local function last()
  if arg[1] == "trace" then print(debug.traceback("", 1)) else require("crashes")() end
  return 1
end
function global(a, b)
  local x = a and b or 3
  local r = last()
  return r + x
end
local T = {sub = {}}
function T.sub.field(n)
  local y = {}
  for i = 1, n do y[#y + 1] = i * 2 // 1 end
  local r = global(n > 1 and 2 or nil, #y)
  return r
end
function T:method(s)
  local q = s .. "x" .. #s
  local r = T.sub.field(#q)
  return r
end
local up = function(k) local r = T:method("a" .. k) return r end
local function iter(s, c) if c == nil then local r = up("z") return r end end
function varargs(...)
  local a, b = ..., nil
  for v in iter, nil, nil do a = v end
  return a
end
local adds = setmetatable({}, {__add = function(a, b) local r = varargs(1, 2) return r end})
local function far()
%s
  local r = adds + 1
  return r
end
local co = coroutine.wrap(function()
  local ok = pcall(function() local z = far() return z end)
  return ok
end)
local done = co()
""" % ("\n" * 140)
SCRIPTS = (
    Script(
        "ruby",
        "ruby",
        _RUBY,
        (("step", 5), ("step", 4), ("block in work", 10), ("work", 9), ("<main>", 14)),
        r"SIG(ABRT|SEGV) in ruby[\d.]*, step\(\) of script: NULL pointer read",
    ),
    Script(
        "ruby, in a thread",
        "ruby",
        _RUBY.replace("\nwork\n", "\nThread.new { work }.join\n"),
        (
            *(("step", 5), ("step", 4), ("block in work", 10), ("work", 9)),
            ("block in <main>", 14),
        ),
        r"SIG(ABRT|SEGV) in ruby[\d.]*, step\(\) of script: NULL pointer read",
    ),
    Script(
        "perl",
        "perl",
        _PERL,
        (("Job::step", 5), ("Job::step", 4), ("main::work", 9), ("(main)", 12)),
        r"SIGSEGV in perl, Job::step\(\) of script: NULL pointer read",
    ),
    Script(
        "php",
        "php",
        _PHP,
        (
            *(("Job::step", 6), ("Job::step", 4), ("{closure}", 11), ("work", 11)),
            *(("{main}", 1), ("{main}", 14)),
        ),
        r"SIGSEGV in php[\d.]*, Job::step\(\) of script: NULL pointer read",
    ),
)


def run(crasher: Crasher, script: Script, tmp_path: Path) -> Analysis:
    """Run a script until its interpreter is dead, and analyse the core."""
    found = shutil.which(script.interpreter)
    if found is None:
        pytest.skip(f"{script.interpreter} is not installed")
    path = tmp_path / "script"
    path.write_text(script.text)
    return analyse_death(crasher.run(Path(found).resolve(), path))


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_analyse_script_shows_its_frames(crasher: Crasher, script: Script, tmp_path: Path) -> None:
    analysis = run(crasher, script, tmp_path)
    assert analysis.facts is not None
    assert analysis.facts.problems == ()
    frames = analysis.facts.crashed_interpreted
    assert {f.kind for f in frames} == {script.name.partition(",")[0]}
    assert tuple((f.function, f.line) for f in frames) == script.frames
    assert all((f.file or "").startswith(str(tmp_path / "script")) for f in frames)
    assert re.fullmatch(script.title, analysis.title or "")
    assert "in " + (script.frames[0][0]) in (analysis.explanation or "")
    assert analysis.cpu_seconds < 2 * slowness()


def test_analyse_endless_recursion_in_python_shows_its_end(
    crasher: Crasher, tmp_path: Path
) -> None:
    """Ten thousand frames, for each of which pystack takes some of its own stack."""
    path = tmp_path / "script"
    path.write_text(_PYTHON_DEEP)
    analysis = analyse_death(crasher.run(Path("/usr/bin/python3").resolve(), path))
    assert analysis.facts is not None
    assert analysis.facts.problems == ()
    frames = analysis.facts.crashed_interpreted
    assert [(f.function, f.line) for f in frames] == [("__repr__", 4)] * len(frames)
    assert len(frames) > 100
    assert re.fullmatch(
        r"SIGSEGV in python3[\d.]*, __repr__\(\) of script: stack overflow", analysis.title or ""
    )
    assert analysis.cpu_seconds < 2 * slowness()


_TRACED = re.compile(r"^\t(?P<file>[^\[][^:]*):(?P<line>\d+): in (?P<what>.*)$", re.MULTILINE)


def test_analyse_lua_shows_what_its_own_traceback_does(crasher: Crasher, tmp_path: Path) -> None:
    """Of a coroutine Lua shows its own functions; the frames below are of what resumed it."""
    lua = shutil.which("lua5.4")
    if lua is None or shutil.which("gcc") is None:
        pytest.skip("lua5.4 or gcc is not installed")
    program, script = Path(lua).resolve(), tmp_path / "script"
    script.write_text(f"package.cpath = '{tmp_path}/?.so'" + _LUA)
    source, library = tmp_path / "crashes.c", tmp_path / "crashes.so"
    source.write_text(_LUA_EXTENSION)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    said = subprocess.run([program, script, "trace"], capture_output=True, text=True, check=True)
    expected = [
        (_named(found["what"]), int(found["line"])) for found in _TRACED.finditer(said.stdout)
    ]
    assert len(expected) == 11, said.stdout
    analysis = analyse_death(crasher.run(program, script))
    assert analysis.facts is not None
    assert analysis.facts.problems == ()
    frames = [(f.function, f.line) for f in analysis.facts.crashed_interpreted]
    assert frames == [*expected, ("(main)", script.read_text().count("\n"))]
    assert analysis.title == "SIGSEGV in lua5.4, crash(): NULL pointer read"
    assert analysis.cpu_seconds < 2 * slowness()


def _named(what: str) -> str:
    """Return how crashd names a function: as Lua does, but without its kind."""
    if what.startswith(("metamethod", "for iterator")):
        return f"({what.partition(' ' + chr(39))[0]})"
    return what.split("'")[1] if "'" in what else "(anonymous)"
