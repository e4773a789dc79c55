"""What `info` shows of a kernel's crash: fields, the stack that a vmlinux gave, the log. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from crashd.cli.render import Row, value_text
from crashd.domain.elf.vmlinux import debug_package
from crashd.domain.kdump.symbols import symbols_of
from crashd.domain.text import printable
from crashd.domain.units import format_size

_Field = tuple[str, str | None]
_LAST_WORDS = 40
"""Lines shown of a log without a report."""
_MODULES_SHOWN = 12
_FRAMES_SHOWN = 20
_CPUS_SHOWN = 16


def kernel_fields(doc: Row) -> Iterator[_Field]:
    """Yield labels and texts of a crash's `kernel`."""
    kernel = doc.get("kernel")
    if not isinstance(kernel, Mapping):
        return
    yield "Kernel", _joined(kernel, "release", "machine", "version")
    yield "Panic", _text(kernel, "panic")
    yield "Earlier", _text(kernel, "earlier")
    yield "Function", _function(kernel)
    yield "CPU", _text(kernel, "cpu")
    words = kernel.get("taint_words") or []
    letters = _text(kernel, "taint")
    yield "Tainted", f"{letters} ({', '.join(map(value_text, words))})" if letters else None
    yield "Hardware", _text(kernel, "hardware")
    yield "Modules", _modules(kernel.get("modules") or [])
    yield "Source", _source(kernel)
    yield "Dump", _dump(kernel)
    yield "Log", _text(kernel, "log_file")
    yield "Memory", _memory(kernel)
    yield "vmlinux", _text(kernel, "build_id")
    yield "symbols", _symbols(kernel)


def _text(kernel: Mapping[str, Any], key: str) -> str | None:
    value = kernel.get(key)
    return None if value in (None, "") else value_text(value)


def _joined(kernel: Mapping[str, Any], *keys: str) -> str | None:
    return " ".join(text for key in keys if (text := _text(kernel, key))) or None


def _function(kernel: Mapping[str, Any]) -> str | None:
    function = _text(kernel, "function")
    if function is None:
        return None
    offset, module = _text(kernel, "offset"), _text(kernel, "module")
    return function + (f"+{offset}" if offset else "") + (f" [{module}]" if module else "")


def _modules(modules: list[object]) -> str | None:
    if not modules:
        return None
    shown = " ".join(value_text(name) for name in modules[:_MODULES_SHOWN])
    more = len(modules) - _MODULES_SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def _source(kernel: Mapping[str, Any]) -> str | None:
    path = _text(kernel, "path")
    if path is None:
        return (
            "the log of the running kernel"
            if kernel.get("source") == "kmsg"
            else _text(kernel, "source")
        )
    return f"{path} ({value_text(kernel.get('maker'))})"


def _dump(kernel: Mapping[str, Any]) -> str | None:
    name = _text(kernel, "dump")
    if name is None:
        return None
    words = [
        text
        for text in (
            _text(kernel, "format"),
            "flattened" if kernel.get("flattened") else None,
            _text(kernel, "compression"),
            f"in {kernel['wrapped_by']}" if kernel.get("wrapped_by") else None,
            f"level {kernel['dump_level']}" if kernel.get("dump_level") is not None else None,
        )
        if text
    ]
    return name + (f" ({', '.join(words)})" if words else "")


def _memory(kernel: Mapping[str, Any]) -> str | None:
    size = kernel.get("memory_bytes")
    return format_size(size) if isinstance(size, int) else None


def _symbols(kernel: Mapping[str, Any]) -> str | None:
    symbols = symbols_of(kernel)
    if symbols is None:  # nothing is analysed, or nobody looked yet
        if kernel.get("format") is None or kernel.get("build_id") is None:
            return None
        package = debug_package(_text(kernel, "release"), _text(kernel, "version"))
        return symbols_text({"build_id": kernel["build_id"], "package": package})
    if symbols.get("state") != "done":
        return symbols_text(symbols)
    kept = f" (kept: {value_text(symbols['kept'])})" if symbols.get("kept") else ""
    return f"by {value_text(symbols.get('vmlinux'))}{kept}"


def symbols_text(symbols: Mapping[str, Any]) -> str:
    """Say why there are no symbols, and what to do about it."""
    build_id, package = _text(symbols, "build_id"), _text(symbols, "package")
    words = [f"build-id {build_id}"] if build_id else []
    if symbols.get("state") == "failed":
        return f"none ({'; '.join([*words, value_text(symbols.get('reason'))])})"
    if package is not None and build_id:
        words.append(f"install {package}")
    if reason := _text(symbols, "reason"):
        words.append(reason)
    return f"none ({'; '.join(words)})" if words else "none"


def symbol_lines(doc: Row, *, show_all: bool) -> Iterator[str]:
    """Show the stack of the task that panicked, with lines and locals, and each CPU's task."""
    symbols = symbols_of(doc.get("kernel") if isinstance(doc.get("kernel"), Mapping) else None)
    if symbols is None or symbols.get("state") != "done":
        return
    frames = [frame for frame in doc.get("frames") or [] if isinstance(frame, Mapping)]
    if frames:
        yield ""
        yield "Stack of the task that panicked:"
    shown = frames if show_all else frames[:_FRAMES_SHOWN]
    for number, frame in enumerate(shown):
        yield f"  #{number:<3} {_frame_text(frame)}"
        yield from (f"         {line}" for line in _local_lines(frame, show_all))
    if len(shown) < len(frames):
        yield f"       … and {len(frames) - len(shown)} more, see --all"
    yield from _cpu_lines(doc, show_all)


def _frame_text(frame: Mapping[str, Any]) -> str:
    function = value_text(frame.get("function") or frame.get("pc"))
    offset = frame.get("symbol_offset")
    place = f"+{offset:#x}" if isinstance(offset, int) else ""
    module = frame.get("module")
    words = [f"{function}{place}", "(inlined)" if frame.get("inline") else ""]
    words.append("" if module in (None, "kernel") else f"[{value_text(module)}]")
    if frame.get("file"):
        line = f":{value_text(frame['line'])}" if frame.get("line") else ""
        words.append(f"at {value_text(frame['file'])}{line}")
    return " ".join(filter(None, words))


def _local_lines(frame: Mapping[str, Any], show_all: bool) -> Iterator[str]:
    """Show a frame's locals: without --all only those of panic() itself."""
    if not show_all and frame.get("function") != "panic":
        return
    for local in frame.get("locals") or []:
        if isinstance(local, Mapping):
            yield f"{value_text(local.get('name'))} = {value_text(local.get('value'))}"


def _cpu_lines(doc: Row, show_all: bool) -> Iterator[str]:
    cpus = [
        thread
        for thread in doc.get("threads") or []
        if isinstance(thread, Mapping) and thread.get("cpu") is not None
    ]
    if not cpus:
        return
    yield ""
    yield f"CPUs ({len(cpus)}):"
    shown = cpus if show_all else cpus[:_CPUS_SHOWN]
    for thread in shown:
        mark = "*" if thread.get("crashed") else " "
        name = f"{value_text(thread.get('name'))}[{value_text(thread.get('tid'))}]"
        where = f"  in {value_text(thread['function'])}" if thread.get("function") else ""
        yield f"  {mark} {value_text(thread.get('cpu')):>4}  {name:<24}{where}".rstrip()
    if len(shown) < len(cpus):
        yield f"    … and {len(cpus) - len(shown)} more, see --all"


def report_lines(doc: Row, *, show_all: bool) -> Iterator[str]:
    """Yield the lines of the report; with `show_all`, the whole log that was kept."""
    report, log = doc.get("report") or [], doc.get("log") or []
    lines = log if show_all and log else report or log[-_LAST_WORDS:]
    if not lines:
        return
    yield ""
    yield "Log:" if lines is log else "From the log:" if report else "End of the log:"
    yield from (f"  {printable(str(line))}" for line in lines)
