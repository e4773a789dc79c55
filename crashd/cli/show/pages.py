"""The pages of `info` and `status`. Pure, like render.py: records in, lines out.

Over 400 lines, because it is one list: the lines of a page.
"""

from __future__ import annotations

from crashd.cli.render import (
    ABSENT,
    BOLD,
    GREEN,
    RED,
    Row,
    labelled,
    local_time,
    local_time_of_ns,
    styled,
    value_text,
    wrap,
    wrap_words,
)
from crashd.domain.crash.keys import BOOT_UNKNOWN, SHORT_ID_LENGTH
from crashd.domain.text import printable
from crashd.domain.units import format_duration, format_size

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

LABEL_WIDTH = 15
TEXT_MAX = 2000
"""Characters shown of one value without --all."""
THREADS_MAX = 16
FRAMES_MAX = 64

_RAW_SECTIONS = (
    ("limits", "Limits"),
    ("maps", "Maps"),
    ("status", "Status"),
    ("mountinfo", "Mounts"),
    ("open_fds", "Open files"),
)

_Field = tuple[str, str | None]


def render_info(
    doc: Row,
    *,
    now_ns: int,
    show_all: bool,
    color: bool,
    core_file: str | None,
    width: int | None = None,
) -> Iterator[str]:
    """Yield the lines of one crash's page; `core_file` is the path of its stored core. Values are
    wrapped to `width` columns.
    """
    for line in wrap(value_text(doc.get("title")), width, 4):
        yield styled(line, BOLD if color else None)
    limit = None if show_all else TEXT_MAX
    kernel = None
    if doc.get("kind") == "kernel":
        from crashd.cli.show import kernelpage  # most crashes are of processes

        kernel = kernelpage
    for number, group in enumerate(
        (
            _what(doc, now_ns),
            _who(doc),
            _where(doc),
            _capture(doc),
            _core(doc, core_file),
            kernel.kernel_fields(doc) if kernel else (),
        )
    ):
        lines = [
            line
            for label, text in group
            if text
            for line in labelled(label, _shorten(text, limit), LABEL_WIDTH, width)
        ]
        if lines:
            yield ""
            yield from lines
        if number == 0:  # what happened, and where, comes first
            yield from _frames(doc, show_all, width)
    yield from _warnings(doc, width)
    if kernel:
        yield from kernel.symbol_lines(doc, show_all=show_all)
    yield from _threads(doc, show_all)
    if kernel:
        yield from kernel.report_lines(doc, show_all=show_all)
    if show_all:
        yield from _raw(doc)


def _shorten(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters with --all)"


def _known(value: object) -> str | None:
    text = value_text(value)
    return None if text == ABSENT and value != ABSENT else text


def age_text(then_ns: int, now_ns: int) -> str:
    """Return how long ago something happened, in words."""
    if then_ns > now_ns:
        return f"{format_duration(then_ns - now_ns)} in the future"
    age_ns = now_ns - then_ns
    return "just now" if age_ns < 10**9 else f"{format_duration(age_ns // 10**9 * 10**9)} ago"


def _what(doc: Row, now_ns: int) -> Iterator[_Field]:
    crash_id = value_text(doc.get("id"))
    yield "ID", f"{crash_id} ({crash_id[-SHORT_ID_LENGTH:]})"
    time_ns = doc.get("time_ns")
    if isinstance(time_ns, int):
        yield "Time", f"{local_time_of_ns(time_ns)} ({age_text(time_ns, now_ns)})"
    else:
        yield "Time", local_time(doc.get("time"))
    yield "Kind", None if doc.get("kind") == "process" else _known(doc.get("kind"))
    yield "State", _known(doc.get("state"))
    yield "Pinned", "yes" if doc.get("pinned") else None
    yield "Signal", _signal(doc)
    yield "Explanation", _known(doc.get("explanation"))
    analysis = doc.get("analysis") or {}
    match analysis.get("state"):
        case "failed":
            yield "Analysis", f"failed: {value_text(analysis.get('reason'))}"
        case "pending" if doc.get("state") == "capturing":
            yield "Analysis", "pending: the core is being captured"
        case "pending":
            yield "Analysis", "pending: what it finds is shown here in a moment"
    count = doc.get("count_of_signature")
    since = local_time(doc.get("first_of_signature"))
    seen = f" (seen {count} times since {since})" if isinstance(count, int) and count > 1 else ""
    yield "Signature", f"{value_text(doc['signature'])}{seen}" if doc.get("signature") else None


def _signal(doc: Row) -> str | None:
    number = doc.get("signal")
    if number is None:
        return None
    words = [f"{value_text(doc.get('signal_name'))} ({value_text(number)})"]
    for key, label in (
        ("si_code", "si_code"),
        ("fault_address", "address"),
        ("sender_pid", "sent by pid"),
        ("sender_uid", "uid"),
    ):
        if doc.get(key) is not None:
            words.append(f"{label} {value_text(doc[key])}")
    return ", ".join(words)


def _who(doc: Row) -> Iterator[_Field]:
    yield "Comm", _known(doc.get("comm"))
    yield "Executable", _known(doc.get("exe"))
    yield "Build ID", _known(doc.get("build_id"))
    yield "Package", _package(doc)
    yield "Command line", _known(doc.get("cmdline"))
    yield "Directory", _known(doc.get("cwd"))
    root = doc.get("root")
    yield "Root", _known(root) if root != "/" else None
    yield "PID", _process(doc)
    if doc.get("uid") is not None or doc.get("gid") is not None:
        yield "UID, GID", f"{value_text(doc.get('uid'))}, {value_text(doc.get('gid'))}"
    yield "Readable by", _readers(doc)


def _package(doc: Row) -> str | None:
    words = [text for key in ("name", "version") if (text := _known(doc.get(f"package_{key}")))]
    source = doc.get("package_source")
    said = "by the executable's own note" if source == "note" else f"by {value_text(source)}"
    return f"{' '.join(words)} ({said})" if words else None


def _process(doc: Row) -> str | None:
    pid, inside = doc.get("pid"), doc.get("ns_pid")
    if pid is None and inside is None:
        return None
    words = [value_text(pid)]
    if inside is not None and inside != pid:
        words.append(f"{value_text(inside)} in its own pid namespace")
    if doc.get("tid") not in (None, pid):
        name = doc.get("thread_comm")
        words.append(f"thread {value_text(doc['tid'])}" + (f" ({printable(name)})" if name else ""))
    return ", ".join(words)


def _readers(doc: Row) -> str | None:
    if doc.get("kind") != "process":
        return None
    owner = doc.get("owner_uid")
    if owner not in (None, 0):
        return f"root and uid {value_text(owner)}"
    set_id = doc.get("dumpable") not in (None, 1)
    return "root only (set-id, or otherwise not dumpable)" if set_id else "root only"


def _where(doc: Row) -> Iterator[_Field]:
    yield "Host", _known(doc.get("hostname"))
    nodename = doc.get("nodename")
    yield "Node name", _known(nodename) if nodename != doc.get("hostname") else None
    yield "Host ID", _known(doc.get("host"))  # this and the labels are of a fleet's records
    labels = doc.get("labels")
    named = labels.items() if isinstance(labels, dict) else ()
    yield "Labels", ", ".join(f"{printable(k)}={value_text(v)}" for k, v in named) or None
    boot_id = _known(doc.get("boot_id"))
    yield "Boot ID", boot_id if boot_id != BOOT_UNKNOWN else None
    yield "Unit", _known(doc.get("unit"))
    yield "User unit", _known(doc.get("user_unit"))
    yield "Slice", _known(doc.get("slice"))
    yield "Session", _known(doc.get("session"))
    yield "Control group", _known(doc.get("cgroup"))
    container = _known(doc.get("container_id"))
    runtime = _known(doc.get("container_runtime"))
    yield "Container", f"{container} ({runtime})" if container and runtime else container
    pod, uid = doc.get("pod") or {}, _known(doc.get("pod_uid"))
    words = [_known(pod.get(key)) for key in ("namespace", "name", "container")]
    name = "/".join(word for word in words if word)
    yield "Pod", f"{name} ({uid})" if name and uid else uid
    yield "Node", _known(pod.get("node"))


def _capture(doc: Row) -> Iterator[_Field]:
    capture: Mapping[str, Any] = doc.get("capture") or {}
    words = [f"by {value_text(capture.get('mode'))}"]
    if capture.get("engine") not in (None, "none"):
        words.append(f"engine {value_text(capture['engine'])}")
    words += _times(capture)
    if capture.get("disposition") not in (None, "full"):
        words.append(f"kept: {value_text(capture['disposition'])}")
    yield "Captured", ", ".join(words) if capture else None
    yield "Incomplete", _known(capture.get("reason"))
    evicted = doc.get("evicted") or {}
    limit, when = value_text(evicted.get("reason")), local_time(evicted.get("time"))
    yield "Core deleted", f"{when}, by retention ({limit})" if evicted else None
    yield (
        "Identity",
        "uncertain: nothing was read from /proc"
        if capture.get("identity") == "none" and doc.get("kind") == "process"
        else None,
    )


def _times(capture: Mapping[str, Any]) -> Iterator[str]:
    """Say where the time went: whom the crash kept waiting, and what was done after that."""
    held, queued, stored = (
        format_duration(max(0, round(seconds * 1e9))) if isinstance(seconds, int | float) else None
        for seconds in (capture.get(f"{what}_seconds") for what in ("hold", "queued", "store"))
    )
    if held:
        yield f"process held for {held}" + (f" ({queued} of it queued)" if queued else "")
    if stored:
        spilled = capture.get("spilled_bytes") or 0
        raw = f" ({format_size(spilled)} spilled to disk before)" if spilled else ""
        yield f"stored {stored} later{raw}" if held else f"stored within {stored}{raw}"


def _core(doc: Row, core_file: str | None) -> Iterator[_Field]:
    core: Mapping[str, Any] = doc.get("core") or {}
    if not core.get("path"):
        yield "Core", "none" if doc.get("kind") == "process" else None
        if doc.get("kind") == "kernel" and core.get("stored_bytes"):
            yield "On disk", format_size(core["stored_bytes"])
        return
    size, stored = core.get("size_bytes") or 0, core.get("stored_bytes") or 0
    whole = "" if core.get("complete") else ", TRUNCATED"
    expected = core.get("expected_bytes")
    if whole and isinstance(expected, int) and expected > size:
        whole += f" (of {format_size(expected)})"
    yield (
        "Core",
        f"{format_size(size)}{whole}, {format_size(core.get('resident_bytes') or 0)} resident, "
        f"{format_size(stored)} on disk",
    )
    yield "Stored as", printable(core_file) if core_file else None


def _warnings(doc: Row, width: int | None) -> Iterator[str]:
    warnings = doc.get("warnings") or []
    if warnings:
        yield ""
    for number, text in enumerate(warnings):
        label = "" if number else "Warnings"
        yield from labelled(label, printable(str(text)), LABEL_WIDTH, width)


def _threads(doc: Row, show_all: bool) -> Iterator[str]:
    threads = [thread for thread in doc.get("threads") or [] if isinstance(thread, dict)]
    if not threads or doc.get("kind") == "kernel":  # the kernel's are those of its CPUs
        return
    threads.sort(key=lambda thread: not thread.get("crashed"))
    shown = threads if show_all else threads[:THREADS_MAX]
    yield ""
    import re

    total = re.search(r"(?m)^Threads:\t(\d{1,9})$", str(doc.get("status") or ""))
    count = len(threads)
    if total is not None and int(total[1]) > count:
        yield f"Threads ({int(total[1])}, of which {count} are recorded):"
    else:
        yield f"Threads ({count}):"
    for thread in shown:
        mark = "*" if thread.get("crashed") else " "
        name, pc = value_text(thread.get("name")), value_text(thread.get("pc"))
        crashed = "  crashed here" if thread.get("crashed") else ""
        yield f"  {mark} {value_text(thread.get('tid')):>7}  {name:<15}  pc {pc}{crashed}".rstrip()
    if len(shown) < len(threads):
        yield f"    … and {len(threads) - len(shown)} more, see --all"


def _frames(doc: Row, show_all: bool, width: int | None) -> Iterator[str]:
    frames: list[Row] = [frame for frame in doc.get("frames") or [] if isinstance(frame, dict)]
    if not frames or doc.get("kind") == "kernel":  # its own words have the trace, or a vmlinux
        return
    interpreted = [frame for frame in frames if frame.get("kind") not in (None, "native")]
    native = [frame for frame in frames if frame.get("kind") in (None, "native")]
    if interpreted:
        from crashd.domain.cause.languages import language_name  # few crashes are of scripts

        language = language_name(value_text(interpreted[0].get("kind")))
        yield from _stack(f"{language} stack of the crashed thread:", interpreted, show_all, width)
    if native:
        what = "Native stack" if interpreted else "Stack"
        yield from _stack(f"{what} of the crashed thread:", native, show_all, width)


def _stack(
    heading: str, frames: list[Mapping[str, Any]], show_all: bool, width: int | None
) -> Iterator[str]:
    shown = frames if show_all else frames[:FRAMES_MAX]
    yield ""
    yield heading
    for number, frame in enumerate(shown):
        function = value_text(frame.get("function") or frame.get("pc"))
        offset = frame.get("offset", frame.get("symbol_offset"))
        place = f"+{hex(offset)}" if isinstance(offset, int) else ""
        words = f"  #{number:<3} {function}".rsplit(" ", function.count(" "))
        if frame.get("module"):
            words.append(f"({value_text(frame['module'])}{place})")
        if frame.get("file"):
            line = f":{value_text(frame['line'])}" if frame.get("line") else ""
            words.append(f"at {value_text(frame['file'])}{line}")
        yield from wrap_words(words, width, 7)
    if len(shown) < len(frames):
        yield f"       … and {len(frames) - len(shown)} more, see --all"


def _raw(doc: Row) -> Iterator[str]:
    environ = doc.get("environ")
    if environ:
        yield ""
        yield "Environment:"
        yield from (f"  {printable(str(entry))}" for entry in environ)
    for key, heading in _RAW_SECTIONS:
        text = doc.get(key)
        if text:
            yield ""
            yield f"{heading}:"
            yield from (f"  {printable(line)}" for line in str(text).rstrip("\n").split("\n"))


def render_status(
    status: Row, *, now_ns: int, color: bool, width: int | None = None
) -> Iterator[str]:
    """Yield the lines of the daemon's status, wrapped to `width` columns."""
    store: Mapping[str, Any] = status.get("store") or {}
    yield styled(f"crashd {value_text(status.get('version'))}", BOLD if color else None)
    started_ns = status.get("started_ns")
    started = None
    if isinstance(started_ns, int):
        started = f"{local_time_of_ns(started_ns)} ({age_text(started_ns, now_ns)})"
    metrics = status.get("metrics_address") or []
    addresses = metrics if isinstance(metrics, list) else [metrics]
    fields: list[_Field] = [
        ("PID", _known(status.get("pid"))),
        ("Started", started),
        ("Ready", _yes_or_no(status.get("ready"), color)),
        ("Registered", _yes_or_no(status.get("registered"), color)),
        ("core_pattern", _known(status.get("core_pattern"))),
        ("Mode", _known(status.get("mode"))),
        ("Workers", _known(status.get("workers"))),
        ("Captures", f"{_count(status, 'in_flight')} in flight, {_count(status, 'queued')} queued"),
        ("Spool", _spool(status)),
        ("Fleet", _fleet(status, now_ns)),
        ("Analyses", _waiting(status)),
        ("Crashes", f"{_count(status, 'crashes_total')} since start"),
        (
            "Store",
            f"{_count(store, 'entries')} crashes, {format_size(_count(store, 'bytes'))}; "
            f"{format_size(_count(store, 'free_bytes'))} free",
        ),
        ("Metrics", ", ".join(f"http://{value_text(a)}/metrics" for a in addresses) or "off"),
        ("Root", _known(status.get("root"))),
    ]
    for label, text in fields:
        if text:
            yield from labelled(label, text, LABEL_WIDTH, width)


def _count(numbers: Mapping[str, Any], key: str) -> int:
    value = numbers.get(key)
    return value if isinstance(value, int) else 0


def _spool(status: Row) -> str | None:
    waiting = _count(status, "spool_backlog")
    return f"{waiting} crashes waiting to be ingested" if waiting else None


def _fleet(status: Row, now_ns: int) -> str | None:
    told = status.get("fleet")
    if not isinstance(told, dict):
        return None
    waiting = f"{_count(told, 'waiting')} records and {_count(told, 'cores_waiting')} cores wait"
    oldest_ns = told.get("oldest_ns")
    if isinstance(oldest_ns, int):
        waiting += f", the oldest came {age_text(oldest_ns, now_ns)}"
    if told.get("failure") is not None:
        return f"{waiting}; {value_text(told.get('failure_text') or told['failure'])}"
    return f"{value_text(told.get('url'))}; {waiting}"


def _waiting(status: Row) -> str:
    waiting = status.get("analyses_waiting")
    return f"{waiting} crashes waiting" if isinstance(waiting, int) else "off"


def _yes_or_no(value: object, color: bool) -> str:
    style = (GREEN if value else RED) if color else None
    return styled("yes" if value else "no", style)
