"""The bodies and headers of the webhook. Pure.

What a crashed process chose (its name, its title) is only ever text of a message: labels and keys
have closed sets, or the forms of units, signatures and ids.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from crashd.domain.text import printable
from crashd.domain.web.unitcounts import fold_unit
from crashd.errors import FormatError

Body = Literal["json", "alertmanager", "slack", "pagerduty", "otlp"]
ROUTING_KEY: Final = "x-routing-key"
"""The header that becomes `routing_key` in a body for PagerDuty, and is not sent."""
HEADERS_MAX = 32
_TEXT_MAX = 400
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}):[ \t]*([\x20-\x7e]{0,4000}?)[ \t]*")
_OURS = ("connection", "content-length", "content-type", "host", "transfer-encoding")
_NAME = re.compile(r"[A-Za-z0-9_.:+-]{1,255}")


def parse_headers(raw: bytes) -> dict[str, str]:
    """Parse a file of lines `Name: value`; empty lines and those with `#` in front do not count.

    Raises:
        FormatError: a line is wrong; the message does not show it, because it may be a secret.
    """
    headers: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _HEADER.fullmatch(line)
        if match is None:
            raise FormatError(f"line {number} is not a header of the form `Name: value`")
        name = match[1].lower()
        if name in _OURS:
            raise FormatError(f"line {number}: crashd itself sets {name}")
        if name in headers or len(headers) == HEADERS_MAX:
            raise FormatError(f"line {number}: {name} appears twice, or is one of too many")
        headers[name] = match[2]
    return headers


def build_body(
    body: Body, document: bytes, headers: Mapping[str, str]
) -> tuple[bytes, dict[str, str]]:
    """Build what is sent for a crash's JSON: the body, and the headers to send.

    Raises:
        FormatError: PagerDuty's key is missing, or the JSON is not a crash's.
    """
    sent = {name: value for name, value in headers.items() if name != ROUTING_KEY}
    if body == "json":
        return document, dict(headers)
    try:
        crash = json.loads(document)
    except ValueError as e:
        raise FormatError("the crash is not JSON") from e
    if not isinstance(crash, dict):
        raise FormatError("the crash is not a JSON object")
    if body == "alertmanager":
        built: Any = [_alert(crash)]
    elif body == "slack":
        built = {"text": _message(crash)}
    elif body == "otlp":
        built = _log_request(crash)
    elif ROUTING_KEY in headers:
        built = _event(crash, headers[ROUTING_KEY])
    else:
        raise FormatError("PagerDuty needs a line `X-Routing-Key: KEY` in hooks.headers_file")
    return json.dumps(built, ensure_ascii=True).encode() + b"\n", sent


def _text(crash: Mapping[str, Any], key: str) -> str:
    value = crash.get(key)
    return printable(value)[:_TEXT_MAX] if isinstance(value, str) else ""


def _name(crash: Mapping[str, Any], key: str) -> str:
    """Return a value that is a name of ours, or of the host; "" if it has another form."""
    value = crash.get(key)
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def _severity(crash: Mapping[str, Any]) -> str:
    return "critical" if crash.get("kind") == "kernel" else "warning"


def _alert(crash: Mapping[str, Any]) -> dict[str, Any]:
    """Build an alert of Alertmanager's API v2. Crashes with equal labels are one alert there."""
    unit = crash.get("unit")
    labels = {
        "alertname": "Crash",
        "instance": _name(crash, "hostname"),
        "kind": _name(crash, "kind"),
        "severity": _severity(crash),
        "signal": _name(crash, "signal_name"),
        "signature": _name(crash, "signature"),
        "unit": fold_unit(unit) if isinstance(unit, str) else "",
    }
    annotations = {
        "summary": _text(crash, "title"),
        "description": _text(crash, "explanation"),
        "crash_id": _name(crash, "id"),
        "program": _text(crash, "exe") or _text(crash, "comm"),
    }
    alert: dict[str, Any] = {
        "labels": {name: value for name, value in labels.items() if value},
        "annotations": {name: value for name, value in annotations.items() if value},
    }
    if _name(crash, "time"):
        alert["startsAt"] = crash["time"]
    return alert


def _message(crash: Mapping[str, Any]) -> str:
    """Build a message for Slack, or a service like it. Code marks keep names from calling people
    (`@channel`), from being links, and from being marked up.
    """
    lines = [f"*{_name(crash, 'hostname') or 'a host'}*: {_code(_text(crash, 'title'))}"]
    if explanation := _text(crash, "explanation"):
        lines.append(_code(explanation))
    unit = crash.get("unit")
    if isinstance(unit, str) and fold_unit(unit) != "other":
        lines.append(f"Unit: {_code(unit)}")
    lines.append(f"`crashctl info {_name(crash, 'id')}`")
    return "\n".join(lines)


def _code(text: str) -> str:
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("`", "'")):
        text = text.replace(character, instead)
    return f"`{text or '(no title)'}`"


def _event(crash: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Build an event of PagerDuty's API v2; crashes of one signature on one host are one alert."""
    host, crash_id = _name(crash, "hostname") or "unknown", _name(crash, "id")
    unit = crash.get("unit")
    payload = {
        "summary": f"{host}: {_text(crash, 'title')}",
        "source": host,
        "severity": _severity(crash),
        "component": fold_unit(unit) if isinstance(unit, str) else "",
        "class": _name(crash, "signal_name") or _name(crash, "kind"),
        "timestamp": _name(crash, "time"),
        "custom_details": {
            "crash_id": crash_id,
            "explanation": _text(crash, "explanation"),
            "program": _text(crash, "exe") or _text(crash, "comm"),
        },
    }
    return {
        "routing_key": key,
        "event_action": "trigger",
        "dedup_key": f"crashd/{host[:100]}/{(_name(crash, 'signature') or crash_id)[:100]}",
        "payload": {name: value for name, value in payload.items() if value},
    }


def _log_request(crash: Mapping[str, Any]) -> dict[str, Any]:
    """Build OTLP's ExportLogsServiceRequest with one log record, in the encoding of its JSON.

    Source: opentelemetry-proto 1.5, opentelemetry/proto/logs/v1/logs.proto, and the semantic
    conventions of exceptions, hosts and processes.
    """
    unit, kernel = crash.get("unit"), crash.get("kind") == "kernel"
    pid, time_ns = crash.get("pid"), crash.get("time_ns")
    attributes = {
        "exception.type": _name(crash, "signal_name") or _name(crash, "kind"),
        "exception.message": _text(crash, "explanation"),
        "process.executable.path": _text(crash, "exe"),
        "process.command": _text(crash, "comm"),
        "process.pid": pid if type(pid) is int and 0 < pid < 1 << 31 else "",
        "crashd.id": _name(crash, "id"),
        "crashd.kind": _name(crash, "kind"),
        "crashd.signature": _name(crash, "signature"),
        "crashd.unit": fold_unit(unit) if isinstance(unit, str) else "",
    }
    record: dict[str, Any] = {
        "severityNumber": 21 if kernel else 17,
        "severityText": "FATAL" if kernel else "ERROR",
        "eventName": "crash",
        "body": {"stringValue": _text(crash, "title")},
        "attributes": _attributes(attributes),
    }
    if type(time_ns) is int and 0 < time_ns < 1 << 63:
        record["timeUnixNano"] = record["observedTimeUnixNano"] = str(time_ns)
    resource = {"service.name": "crashd", "host.name": _name(crash, "hostname")}
    scope = {"scope": {"name": "crashd"}, "logRecords": [record]}
    return {
        "resourceLogs": [
            {"resource": {"attributes": _attributes(resource)}, "scopeLogs": [scope]},
        ]
    }


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    """Build attributes; 64-bit numbers are text in this JSON."""
    return [
        {"key": key, "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}}
        for key, v in values.items()
        if v != ""
    ]


def find_rejection(body: Body, answer: bytes) -> str | None:
    """Return why a server that answered with success took nothing, as OTLP's may; else None."""
    if body != "otlp":
        return None
    try:
        partial = json.loads(answer)["partialSuccess"]
        rejected, why = int(partial.get("rejectedLogRecords", 0)), partial.get("errorMessage")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return f"rejected: {printable(str(why))[:_TEXT_MAX]}" if rejected else None
