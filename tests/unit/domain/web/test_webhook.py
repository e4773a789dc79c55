import json
from typing import Any

import pytest

from crashd.domain.crash.model import Kind, to_json
from crashd.domain.web.webhook import build_body, find_rejection, parse_headers
from crashd.errors import FormatError
from tests.builders.crashes import build_crash

EVIL = "SIGSEGV in `<!channel> @channel\x1b[2J&\n{{x}}"


def document(**changes: Any) -> bytes:
    crash = to_json(build_crash(3, signature="p1-aa", explanation="NULL pointer"))
    return json.dumps({**crash, **changes}).encode()


def build(style: Any, **changes: Any) -> Any:
    body, _ = build_body(style, document(**changes), {"x-routing-key": "key"})
    return json.loads(body)


def test_build_body_json_is_the_document_itself() -> None:
    assert build_body("json", b"{}\n", {"a": "b"}) == (b"{}\n", {"a": "b"})


def test_build_body_alertmanager_has_what_its_api_v2_requires() -> None:
    (alert,) = build("alertmanager")
    assert alert["labels"] == {
        "alertname": "Crash",
        "instance": "host",
        "kind": "process",
        "severity": "warning",
        "signal": "SIGSEGV",
        "signature": "p1-aa",
        "unit": "web3.service",
    }
    assert alert["startsAt"] == "2026-09-21T14:13:23.000000Z"
    assert alert["annotations"]["summary"] == "SIGSEGV in prog3"
    assert alert["annotations"]["description"] == "NULL pointer"
    assert build("alertmanager", kind=Kind.KERNEL)[0]["labels"]["severity"] == "critical"


def test_build_body_alertmanager_labels_hold_nothing_that_a_process_chose() -> None:
    (alert,) = build(
        "alertmanager", title=EVIL, comm=EVIL, exe=EVIL, unit=f"{EVIL}.scope", hostname=EVIL
    )
    assert alert["labels"].keys() == {
        *("alertname", "kind", "severity", "signal", "signature", "unit")
    }
    assert alert["labels"]["unit"] == "other"
    assert "\x1b" not in alert["annotations"]["summary"]


def test_build_body_slack_calls_nobody() -> None:
    text = build("slack", title=EVIL, explanation=EVIL)["text"]
    assert build("slack").keys() == {"text"}
    assert "<" not in text
    assert "\x1b" not in text
    assert text.count("`") % 2 == 0
    for line in text.splitlines():
        outside = line.split("`")[::2]
        assert "@" not in "".join(outside)


def test_build_body_pagerduty_has_what_its_events_v2_require() -> None:
    event = build("pagerduty")
    assert event["routing_key"] == "key"
    assert event["event_action"] == "trigger"
    assert event["dedup_key"] == "crashd/host/p1-aa"
    assert event["payload"]["source"] == "host"
    assert event["payload"]["severity"] in ("critical", "error", "warning", "info")
    assert event["payload"]["summary"] == "host: SIGSEGV in prog3"
    long = build("pagerduty", title="x" * 5000, signature="s" * 255, hostname="h" * 255)
    assert len(long["payload"]["summary"]) <= 1024
    assert len(long["dedup_key"]) <= 255


def test_build_body_pagerduty_without_its_key_is_an_error() -> None:
    with pytest.raises(FormatError, match="X-Routing-Key"):
        build_body("pagerduty", document(), {})


def test_build_body_otlp_is_one_log_record() -> None:
    (logs,) = build("otlp", exe="/usr/bin/prog3", pid=7)["resourceLogs"]
    (scope,) = logs["scopeLogs"]
    (record,) = scope["logRecords"]
    assert {"key": "host.name", "value": {"stringValue": "host"}} in logs["resource"]["attributes"]
    assert record["body"] == {"stringValue": "SIGSEGV in prog3"}
    assert record["timeUnixNano"] == str(json.loads(document())["time_ns"])
    assert (record["severityNumber"], record["severityText"]) == (17, "ERROR")
    found = {one["key"]: one["value"] for one in record["attributes"]}
    assert found["exception.type"] == {"stringValue": "SIGSEGV"}
    assert found["exception.message"] == {"stringValue": "NULL pointer"}
    assert found["process.pid"] == {"intValue": "7"}
    assert found["crashd.signature"] == {"stringValue": "p1-aa"}
    assert found["crashd.unit"] == {"stringValue": "web3.service"}


def rejection(number: str, why: str) -> bytes:
    partial = {"rejectedLogRecords": number, "errorMessage": why}
    return json.dumps({"partialSuccess": partial}).encode()


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b'{"partialSuccess": []}', rejection("0", "slow"), rejection("x", "y")],
)
def test_find_rejection_of_what_was_accepted_is_none(answer: bytes) -> None:
    assert find_rejection("otlp", answer) is None


def test_find_rejection_says_why_otlp_took_no_record() -> None:
    assert find_rejection("otlp", rejection("1", "quota\x1b")) == "rejected: quota\\x1b"
    assert find_rejection("slack", rejection("1", "quota")) is None


@pytest.mark.parametrize("style", ["alertmanager", "slack", "pagerduty", "otlp"])
@pytest.mark.parametrize("raw", [b"", b"[]", b"1", b"\xff", b"{}"])
def test_build_body_of_what_is_no_crash_is_an_error_or_sparse(style: Any, raw: bytes) -> None:
    try:
        body, _ = build_body(style, raw, {"x-routing-key": "key"})
    except FormatError:
        assert raw != b"{}"
    else:
        assert raw == b"{}"
        json.loads(body)


@pytest.mark.parametrize("key", ["title", "unit", "hostname", "id", "signature", "time", "exe"])
@pytest.mark.parametrize("value", [None, 1, [], {}, "\x1b", "x" * 10_000])
@pytest.mark.parametrize("style", ["alertmanager", "slack", "pagerduty", "otlp"])
def test_build_body_takes_any_value(style: Any, key: str, value: object) -> None:
    body, _ = build_body(style, document(**{key: value}), {"x-routing-key": "key"})
    assert len(body) < 8192


def test_parse_headers_takes_names_and_values() -> None:
    raw = b"# comment\n\nAuthorization: Bearer a:b \nX-One:1\r\n"
    assert parse_headers(raw) == {"authorization": "Bearer a:b", "x-one": "1"}


@pytest.mark.parametrize(
    "raw",
    [
        b"no colon",
        b": value",
        b"a b: c",
        b"Host: x",
        b"Content-Length: 1",
        b"A: 1\na: 2",
        b"A: \x00",
        b"A: \xff",
        b" folded: x",
        b"".join(b"A%d: 1\n" % n for n in range(33)),
    ],
)
def test_parse_headers_refuses_what_would_split_or_replace(raw: bytes) -> None:
    with pytest.raises(FormatError, match="line"):
        parse_headers(raw)
