import threading

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from crashd.domain.crash.model import Disposition, DropReason, Engine, Kind
from crashd.domain.signals import CORE_SIGNALS, SIGSEGV
from crashd.domain.web.unitcounts import UNITS_MAX
from crashd.edge.web.exporter import (
    HOLD_BUCKETS,
    OPENMETRICS,
    TEXT,
    Exporter,
)
from tests.builders.crashes import build_crash

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(exporter: Exporter) -> Series:
    """Read every series as Prometheus does."""
    body, content_type = exporter.render("")
    assert content_type == TEXT
    found: Series = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(exporter: Exporter, name: str, **labels: str) -> float:
    return scrape(exporter)[name, tuple(sorted(labels.items()))]


@pytest.fixture
def exporter() -> Exporter:
    return Exporter("1.2.3")


def test_render_fresh_has_every_closed_series_at_0(exporter: Exporter) -> None:
    found = scrape(exporter)
    names = [name for name, _ in found]
    assert names.count("crashd_crashes_total") == len(Kind) * len(Disposition)
    assert names.count("crashd_crashes_by_signal_total") == len(CORE_SIGNALS) + 1
    assert names.count("crashd_capture_hold_seconds_count") == len(Engine)
    assert names.count("crashd_capture_hold_seconds_bucket") == len(Engine) * (
        len(HOLD_BUCKETS) + 1
    )
    assert names.count("crashd_capture_bytes_total") == 3
    assert names.count("crashd_dropped_total") == len(DropReason)
    for name in ("store_bytes", "store_entries", "last_crash_timestamp_seconds"):
        assert names.count(f"crashd_{name}") == len(Kind)
    for name in ("captures_in_flight", "store_free_bytes", "core_pattern_owned"):
        assert names.count(f"crashd_{name}") == 1
    assert found.pop(("crashd_build_info", (("version", "1.2.3"),))) == 1
    assert set(found.values()) == {0}
    assert not [name for name in names if name.endswith("_created")]


def test_render_both_formats_tell_the_same(exporter: Exporter) -> None:
    exporter.crash("process", "full", SIGSEGV, 10**18)
    exporter.captured("memory", 0.02, 100, 50, 10)
    body, content_type = exporter.render(PROMETHEUS_ACCEPT)
    assert content_type == OPENMETRICS
    assert body.endswith(b"# EOF\n")
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    assert found == scrape(exporter)


def test_render_every_metric_has_a_help_line(exporter: Exporter) -> None:
    for family in parse_text(exporter.render("")[0].decode()):
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")


def test_crash_process_counts_kind_disposition_and_signal(exporter: Exporter) -> None:
    exporter.crash("process", "mini", SIGSEGV, 1_700_000_000_500_000_000)
    assert value(exporter, "crashd_crashes_total", kind="process", disposition="mini") == 1
    assert value(exporter, "crashd_crashes_by_signal_total", signal="SIGSEGV") == 1
    name = "crashd_last_crash_timestamp_seconds"
    assert value(exporter, name, kind="process") == 1_700_000_000.5
    assert value(exporter, name, kind="kernel") == 0


def test_crash_kernel_counts_no_signal(exporter: Exporter) -> None:
    exporter.crash(Kind.KERNEL, Disposition.FULL, None, 1)
    assert value(exporter, "crashd_crashes_total", kind="kernel", disposition="full") == 1
    counts = [n for (name, _), n in scrape(exporter).items() if "by_signal" in name]
    assert sum(counts) == 0


@pytest.mark.parametrize("signal", [None, 0, -1, 9, 15, 34, 64, 65, 10**9])
def test_crash_other_signal_is_other(exporter: Exporter, signal: int | None) -> None:
    exporter.crash("process", "full", signal, 1)
    assert value(exporter, "crashd_crashes_by_signal_total", signal="other") == 1


def test_crash_older_than_the_newest_leaves_the_timestamp(exporter: Exporter) -> None:
    exporter.crash("process", "full", 11, 20 * 10**9)
    exporter.crash("process", "full", 11, 10 * 10**9)
    assert value(exporter, "crashd_last_crash_timestamp_seconds", kind="process") == 20


@pytest.mark.parametrize(("kind", "kept"), [("proc", "full"), ("process", ""), ("", "full")])
def test_crash_foreign_label_is_refused_and_not_counted(
    exporter: Exporter, kind: str, kept: str
) -> None:
    before = scrape(exporter)
    with pytest.raises(ValueError, match="is not a valid"):
        exporter.crash(kind, kept, 11, 1)
    with pytest.raises(ValueError, match="is not a valid"):
        exporter.seed({("process", "full"): 5, (kind, kept): 5}, {11: 5}, {"process": 5})
    assert scrape(exporter) == before


@pytest.mark.parametrize(
    ("seconds", "first_bucket"),
    [(0.0, "0.001"), (0.001, "0.001"), (0.0011, "0.0025"), (300.0, "300.0"), (300.1, "+Inf")],
)
def test_captured_hold_falls_in_its_bucket_and_all_above(
    exporter: Exporter, seconds: float, first_bucket: str
) -> None:
    exporter.captured("stream", seconds, 3, 2, 1)
    found = scrape(exporter)
    name = "crashd_capture_hold_seconds"
    bounds = [*(str(float(bound)) for bound in HOLD_BUCKETS), "+Inf"]
    counts = [found[f"{name}_bucket", (("engine", "stream"), ("le", le))] for le in bounds]
    position = bounds.index(first_bucket)
    assert counts == [0] * position + [1] * (len(bounds) - position)
    assert found[f"{name}_sum", (("engine", "stream"),)] == seconds
    assert found[f"{name}_count", (("engine", "stream"),)] == 1
    assert found[f"{name}_count", (("engine", "memory"),)] == 0


def test_hold_buckets_go_from_1_ms_to_5_minutes_upwards() -> None:
    assert list(HOLD_BUCKETS) == sorted(set(HOLD_BUCKETS))
    assert (HOLD_BUCKETS[0], HOLD_BUCKETS[-1]) == (0.001, 300)


def test_captured_sizes_add_up_without_a_hold(exporter: Exporter) -> None:
    exporter.captured(Engine.MEMORY, None, 100, 50, 10)
    exporter.captured(Engine.MEMORY, None, 1, 0, 1)
    sizes = [
        value(exporter, "crashd_capture_bytes_total", stage=stage)
        for stage in ("logical", "resident", "stored")
    ]
    assert sizes == [101, 50, 11]
    assert value(exporter, "crashd_capture_hold_seconds_count", engine="memory") == 0


@pytest.mark.parametrize(
    ("engine", "hold", "size"),
    [("gdb", 1.0, 1), ("memory", -0.1, 1), ("memory", float("nan"), 1), ("memory", 1.0, -1)],
)
def test_captured_nonsense_is_refused_and_not_counted(
    exporter: Exporter, engine: str, hold: float, size: int
) -> None:
    before = scrape(exporter)
    with pytest.raises(ValueError, match=r"valid Engine|capture of"):
        exporter.captured(engine, hold, 1, 1, size)
    assert scrape(exporter) == before


def test_dropped_counts_by_reason(exporter: Exporter) -> None:
    exporter.dropped(DropReason.DEADLINE)
    assert value(exporter, "crashd_dropped_total", reason="deadline") == 1
    with pytest.raises(ValueError, match="DropReason"):
        exporter.dropped("tired")  # type: ignore[arg-type]


def test_control_refused_counts(exporter: Exporter) -> None:
    exporter.control_refused()
    assert value(exporter, "crashd_control_refused_total") == 1


def test_spilled_bytes_add_up(exporter: Exporter) -> None:
    exporter.spilled(1 << 40)
    exporter.spilled(5)
    assert value(exporter, "crashd_spilled_bytes_total") == (1 << 40) + 5


def test_gauges_are_set(exporter: Exporter) -> None:
    exporter.in_flight(3)
    exporter.store("process", 7, 1 << 50)
    exporter.store_free(5)
    exporter.core_pattern_owned(True)
    exporter.stages(2, 5)
    assert (value(exporter, "crashd_holders"), value(exporter, "crashd_storers")) == (2, 5)
    assert value(exporter, "crashd_captures_in_flight") == 3
    assert value(exporter, "crashd_store_entries", kind="process") == 7
    assert value(exporter, "crashd_store_bytes", kind="process") == 1 << 50
    assert value(exporter, "crashd_store_free_bytes") == 5
    assert value(exporter, "crashd_core_pattern_owned") == 1
    exporter.core_pattern_owned(False)
    assert value(exporter, "crashd_core_pattern_owned") == 0
    assert exporter.store_usage() == {"process": (7, 1 << 50), "kernel": (0, 0)}
    with pytest.raises(ValueError, match="Kind"):
        exporter.store("disk", 1, 1)


def test_seed_totals_go_on_from_there(exporter: Exporter) -> None:
    exporter.seed(
        {("process", "full"): 5, ("kernel", "full"): 2}, {11: 4, None: 1, 40: 2}, {"kernel": 10**9}
    )
    exporter.crash("process", "full", 11, 2 * 10**9)
    assert value(exporter, "crashd_crashes_total", kind="process", disposition="full") == 6
    assert value(exporter, "crashd_crashes_total", kind="kernel", disposition="full") == 2
    assert value(exporter, "crashd_crashes_by_signal_total", signal="SIGSEGV") == 5
    assert value(exporter, "crashd_crashes_by_signal_total", signal="other") == 3
    assert value(exporter, "crashd_last_crash_timestamp_seconds", kind="kernel") == 1
    assert value(exporter, "crashd_last_crash_timestamp_seconds", kind="process") == 2


def test_series_count_is_constant_whatever_crashes(exporter: Exporter) -> None:
    for number in range(UNITS_MAX):
        exporter.crash("process", "full", 11, 1, f"unit{number}.service")
    before = scrape(exporter).keys()
    for number in range(10_000):  # each the only one of its unit, as comms are in the index
        exporter.crash("process", "metadata", number, number, f"x{number}.service", f"id-{number}")
        exporter.captured("memory", number / 10, 1, 1, 1, crash_id=f"id-{number}", time_ns=number)
    assert scrape(exporter).keys() == before


# -- exemplars


def exemplars(exporter: Exporter) -> dict[tuple[str, str], tuple[dict[str, str], float, float]]:
    """Read the exemplars, by the sample's name and its last label's value."""
    body, _ = exporter.render(PROMETHEUS_ACCEPT)
    return {
        (sample.name, list(sample.labels.values())[-1]): (
            sample.exemplar.labels,
            sample.exemplar.value,
            float(sample.exemplar.timestamp),
        )
        for family in parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    }


def test_exemplars_are_the_newest_crash_of_each_count_and_bucket(exporter: Exporter) -> None:
    assert exemplars(exporter) == {}
    for number in (1, 2):
        time_ns = number * 10**9
        exporter.crash("process", "full", 11, time_ns, None, f"id-{number}")
        exporter.captured("memory", 0.02, 1, 1, 1, crash_id=f"id-{number}", time_ns=time_ns)
    exporter.captured("memory", 400, 1, 1, 1, crash_id="id-3", time_ns=10**9)
    found = exemplars(exporter)
    assert found["crashd_crashes_total", "process"] == ({"crash_id": "id-2"}, 1, 2)
    held = {key[1]: told for key, told in found.items() if key[0].endswith("_bucket")}
    assert held == {
        "0.025": ({"crash_id": "id-2"}, 0.02, 2),
        "+Inf": ({"crash_id": "id-3"}, 400, 1),
    }


def test_exemplars_are_for_openmetrics_only(exporter: Exporter) -> None:
    exporter.crash("process", "full", 11, 1, None, "id-1")
    assert b"id-1" not in exporter.render("text/plain")[0]
    assert b"id-1" in exporter.render(PROMETHEUS_ACCEPT)[0]


def test_exemplar_of_a_real_id_is_as_short_as_openmetrics_wants(exporter: Exporter) -> None:
    crash = build_crash(1)
    exporter.crash("process", "full", 11, crash.time_ns, None, crash.id)
    ((labels, _, _),) = exemplars(exporter).values()
    assert labels == {"crash_id": crash.id}
    assert sum(len(name) + len(text) for name, text in labels.items()) <= 128


def test_exporters_share_nothing(exporter: Exporter) -> None:
    exporter.dropped(DropReason.DEADLINE)
    assert value(Exporter("2"), "crashd_dropped_total", reason="deadline") == 0


def test_methods_from_many_threads_lose_no_count(exporter: Exporter) -> None:
    def work() -> None:
        for _ in range(500):
            exporter.crash("process", "full", 11, 1)
            exporter.captured("memory", 0.5, 1, 1, 1)
            exporter.dropped(DropReason.DEADLINE)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    exporter.render("")
    for thread in threads:
        thread.join()
    assert value(exporter, "crashd_crashes_total", kind="process", disposition="full") == 2000
    assert value(exporter, "crashd_capture_hold_seconds_count", engine="memory") == 2000
    assert value(exporter, "crashd_capture_bytes_total", stage="stored") == 2000
    assert value(exporter, "crashd_dropped_total", reason="deadline") == 2000


# -- what a request says


def units(exporter: Exporter) -> dict[str, float]:
    found = scrape(exporter)
    return {dict(k[1])["unit"]: v for k, v in found.items() if k[0] == "crashd_unit_crashes_total"}


def test_units_are_counted_by_name_up_to_a_number(exporter: Exporter) -> None:
    exporter.seed_units({"old.service": 7})
    for number in range(2 * UNITS_MAX):
        exporter.crash("process", "full", 11, 1, f"u{number}.service")
    found = units(exporter)
    assert len(found) == UNITS_MAX + 1
    assert found["old.service"] == 7
    assert found["u0.service"] == 1
    assert found["other"] == UNITS_MAX + 1
    exporter.crash("process", "full", 11, 1, "u0.service")
    assert units(exporter)["u0.service"] == 2


def test_units_seeded_go_on_from_there_others_included(exporter: Exporter) -> None:
    exporter.seed_units({"a.service": 3, 'evil"} 1': 2, None: 5})
    exporter.crash("process", "full", 11, 1, "a.service")
    exporter.crash("process", "full", 11, 1, None)
    assert units(exporter) == {"a.service": 4, "other": 8}


@pytest.mark.parametrize("unit", [None, "", "a\nb.service", 'x"} 1.service', "no-type", "u" * 200])
def test_unit_that_is_none_is_other(exporter: Exporter, unit: str | None) -> None:
    exporter.crash("process", "full", 11, 1, unit)
    assert units(exporter) == {"other": 1}


def test_sec_83_scopes_of_containers_share_a_place(exporter: Exporter) -> None:
    for number in range(100):
        for name in (f"docker-{number:064x}.scope", f"x:cri-containerd-{number:064x}.scope"):
            exporter.crash("process", "full", 11, 1, name)
    exporter.crash("process", "full", 11, 1, "ssh.service")
    assert units(exporter) == {
        "other": 0,
        "docker-*.scope": 100,
        "x:cri-containerd-*.scope": 100,
        "ssh.service": 1,
    }


# -- what waits, what is configured, when


def test_recorded_crash_has_the_time_of_recording_whenever_it_happened() -> None:
    exporter = Exporter("1", clock=lambda: 9000.0)
    exporter.seed({("kernel", "full"): 2}, {}, {"kernel": 10**9})
    assert value(exporter, "crashd_last_recorded_timestamp_seconds", kind="kernel") == 0
    exporter.crash("kernel", "full", None, 2 * 10**9)
    assert value(exporter, "crashd_last_recorded_timestamp_seconds", kind="kernel") == 9000
    assert value(exporter, "crashd_last_recorded_timestamp_seconds", kind="process") == 0
    assert value(exporter, "crashd_last_crash_timestamp_seconds", kind="kernel") == 2


def test_new_signatures_are_counted_with_their_time() -> None:
    exporter = Exporter("1", clock=lambda: 9000.0)
    exporter.new_signatures(0)
    assert value(exporter, "crashd_last_new_signature_timestamp_seconds") == 0
    exporter.new_signatures(2)
    assert value(exporter, "crashd_new_signatures_total") == 2
    assert value(exporter, "crashd_last_new_signature_timestamp_seconds") == 9000


def test_reload_that_fails_keeps_the_time_of_the_last_success() -> None:
    times = iter([10.0, 20.0])
    exporter = Exporter("1", clock=lambda: next(times))
    exporter.reloaded(True)
    exporter.reloaded(False)
    assert value(exporter, "crashd_config_last_reload_successful") == 0
    assert value(exporter, "crashd_config_last_reload_success_timestamp_seconds") == 10


def test_waiting_and_limits_are_set(exporter: Exporter) -> None:
    exporter.spooled(3, 4096)
    exporter.analysis_waiting(7)
    exporter.configured({"max_use": 5, "max_core": None})
    assert value(exporter, "crashd_spool_entries") == 3
    assert value(exporter, "crashd_spool_bytes") == 4096
    assert value(exporter, "crashd_analysis_waiting") == 7
    assert value(exporter, "crashd_configured_limit_bytes", limit="max_use") == 5
    assert value(exporter, "crashd_configured_limit_bytes", limit="max_core") == float("inf")
    with pytest.raises(ValueError, match="not in tuple"):
        exporter.configured({"max_cores": 1})


def test_process_metrics_are_this_process(exporter: Exporter) -> None:
    exporter.add_process()
    assert 0 < value(exporter, "process_open_fds") <= value(exporter, "process_max_fds")
    assert value(exporter, "process_resident_memory_bytes") > 1 << 20
    assert value(exporter, "process_start_time_seconds") > 10**9
