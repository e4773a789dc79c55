"""The part of `info` that only kernel crashes have. Pure, like render.py."""

from collections.abc import Iterator, Mapping
from typing import Any

from crashd.cli.render import Row, value_text
from crashd.domain.text import printable
from crashd.domain.units import format_size

_Field = tuple[str, str | None]
_LAST_WORDS = 40
"""Lines shown of a log without a report."""
_MODULES_SHOWN = 12


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


def report_lines(doc: Row, *, show_all: bool) -> Iterator[str]:
    """Yield the lines of the report; with `show_all`, the whole log that was kept."""
    report, log = doc.get("report") or [], doc.get("log") or []
    lines = log if show_all and log else report or log[-_LAST_WORDS:]
    if not lines:
        return
    yield ""
    yield "Log:" if lines is log else "From the log:" if report else "End of the log:"
    yield from (f"  {printable(str(line))}" for line in lines)
