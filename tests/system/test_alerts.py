"""The shipped alerts and dashboard, by Prometheus's own tool and against a live daemon."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.running import DEFAULT_CONFIG, Daemon

ROOT = Path(__file__).parents[2]
RULES = ROOT / "etc/prometheus/crashd.rules.yml"
DASHBOARD = ROOT / "etc/grafana/crashd.json"
_METRIC = re.compile(r"\bcrashd_[a-z_]+\b")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a live daemon exports."""
    root = tmp_path_factory.mktemp("d")
    with Daemon(root, "--no-register", config=DEFAULT_CONFIG) as daemon:
        with urllib.request.urlopen(daemon.metrics_url(), timeout=10) as answer:
            text = answer.read().decode()
        yield text


@pytest.fixture(scope="module")
def exported(scraped: str) -> set[str]:
    """The names of the samples that it exports."""
    return {re.split(r"[ {]", line)[0] for line in scraped.splitlines() if line[:1] != "#"}


def queries() -> list[str]:
    """Every query of the rules and the dashboard."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    found = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    return found + [rule["expr"] for rule in rules()]


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_metrics_of_a_live_daemon_are_as_promtool_wants_them(scraped: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scraped, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_rules_are_sound_and_fire_as_they_should(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(ROOT / "tests/data/prometheus/crashd.rules.test.yml", tmp_path)
    checked = promtool("check", "rules", tmp_path / RULES.name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = promtool("test", "rules", tmp_path / "crashd.rules.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_test_notices_a_metric_that_is_not_there(tmp_path: Path) -> None:
    text = RULES.read_text().replace("crashd_kdump_ready", "crashd_kdump_redy")
    (tmp_path / RULES.name).write_text(text)
    shutil.copy(ROOT / "tests/data/prometheus/crashd.rules.test.yml", tmp_path)
    assert promtool("test", "rules", tmp_path / "crashd.rules.test.yml").returncode == 1


def test_rules_and_dashboard_name_only_what_is_exported(exported: set[str]) -> None:
    named = {name for query in queries() for name in _METRIC.findall(query)}
    assert len(named) > 12
    assert named <= exported


def test_rules_and_dashboard_ask_for_values_that_labels_have(scraped: str) -> None:
    """A misspelt reason would be an alert that never fires."""
    there = set(re.findall(r'(\w+)="([^"]*)"', scraped))
    asked = re.findall(r'\b(?!job|instance)(\w+)=~?"([^"$]*)"', "\n".join(queries()))
    wanted = {(label, value) for label, values in asked for value in values.split("|")}
    assert len(wanted) > 8
    assert wanted <= there


def test_dashboard_queries_are_promql(tmp_path: Path) -> None:
    """By way of a rules file: promtool parses no single query without a server."""
    asked = [re.sub(r"\$__(range|rate_interval)", "1h", query) for query in queries()]
    file = tmp_path / "queries.yml"
    recorded = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(asked)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_its_paragraph() -> None:
    alerts = [rule["alert"] for rule in rules()]
    tested = (ROOT / "tests/data/prometheus/crashd.rules.test.yml").read_text()
    page = (ROOT / "packaging/man/crashd-alerts.7.rst").read_text()
    assert len(alerts) == 15
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n", tested), alert
        assert f"\n{alert}\n    " in page
        assert f'runbook: "crashd-alerts(7), {alert}"' in RULES.read_text()


def test_dashboard_panels_do_not_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, panel["title"]
                cells.add((x, y))
        assert place["x"] + place["w"] <= 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
