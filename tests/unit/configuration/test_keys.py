import os
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from crashd.configuration.files import ERRORS_MAX, FILE_MAX, find_files, load, load_files
from crashd.configuration.keys import CaptureSection, Http, Settings, known_keys, split_listen
from crashd.domain.units import Amount, parse_size
from crashd.errors import ConfigError
from crashd.store.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.config_dropins.mkdir(mode=0o755, parents=True)
    return paths


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o644)
    return path


def _load(tmp_path: Path, text: str | bytes) -> Settings:
    return load_files([_write(tmp_path / "crashd.toml", text)])


def _error(tmp_path: Path, text: str | bytes) -> str:
    """Load what is wrong; return the message from the file's name on."""
    with pytest.raises(ConfigError) as e:
        _load(tmp_path, text)
    assert e.value.exit_code == 2
    assert "\n" not in str(e.value)
    return str(e.value).removeprefix(f"{tmp_path}/")


# -- files -----------------------------------------------------------------------------------------


def test_load_no_files_is_defaults(tmp_path: Path) -> None:
    assert load(Paths(tmp_path)) == Settings()


def test_load_files_none_is_defaults() -> None:
    assert load_files([]) == Settings()


def test_find_files_order_is_main_then_names(paths: Paths) -> None:
    for name in ("b.toml", "a.toml", "10.toml", ".hidden.toml", "c.toml.rpmsave", "d.conf", "toml"):
        _write(paths.config_dropins / name, "")
    _write(paths.config_file, "")
    assert find_files(paths) == [
        paths.config_file,
        *(paths.config_dropins / name for name in ("10.toml", "a.toml", "b.toml")),
    ]


def test_load_later_file_wins_key_by_key(paths: Paths) -> None:
    _write(
        paths.config_file,
        "[capture]\nworkers = 3\nqueue = 3\nthreads = 3\n[privacy]\npatterns = ['A', 'B']\n",
    )
    _write(paths.config_dropins / "10.toml", "capture.queue = 10\ncapture.threads = 10\n")
    _write(
        paths.config_dropins / "20.toml",
        "capture = { threads = 20 }\nprivacy.patterns = ['C']\nretention.process.keep_free = 7\n",
    )
    settings = load(paths)
    assert settings.capture == CaptureSection(workers=3, queue=10, threads=20)
    assert settings.privacy.patterns == ("C",)
    assert settings.retention.process.keep_free == Amount(size_bytes=7)
    assert settings.http == Http()


def test_load_dropin_without_main_file_is_read(paths: Paths) -> None:
    _write(paths.config_dropins / "a.toml", "log.level = 'debug'\n")
    assert load(paths).log.level == "debug"


def test_load_error_in_dropin_names_it(paths: Paths) -> None:
    _write(paths.config_file, "[capture]\nworkers = 3\n")
    dropin = _write(paths.config_dropins / "a.toml", "\n[capture]\nworkers = '3'\n")
    with pytest.raises(ConfigError, match=f"^{dropin}:3: capture.workers: must be "):
        load(paths)


def test_load_overridden_error_is_an_error(paths: Paths) -> None:
    _write(paths.config_file, "capture.workers = 0\n")
    _write(paths.config_dropins / "a.toml", "capture.workers = 1\n")
    with pytest.raises(ConfigError, match=r"crashd.toml:1: capture.workers: "):
        load(paths)


def test_load_errors_of_all_files_are_told(paths: Paths) -> None:
    _write(paths.config_file, "[capture]\nqueue = 0\nnope = 1\n")
    _write(paths.config_dropins / "a.toml", "log.level = 'loud'\n")
    with pytest.raises(ConfigError, match=r"crashd.toml:2: capture.queue: ") as e:
        load(paths)
    assert e.value.hint is not None
    first, *lines = e.value.hint.splitlines()
    assert first == "2 more:"
    assert lines[0] == f"{paths.config_file}:3: unknown key 'capture.nope'"
    assert lines[1].startswith(f"{paths.config_dropins}/a.toml:1: log.level: must be ")


def test_load_many_errors_are_cut(tmp_path: Path) -> None:
    text = "".join(f"z{number} = 1\n" for number in range(ERRORS_MAX + 5))
    with pytest.raises(ConfigError) as e:
        _load(tmp_path, text)
    assert e.value.hint is not None
    assert e.value.hint.startswith(f"{ERRORS_MAX + 4} more:\n")
    assert len(e.value.hint.splitlines()) == ERRORS_MAX + 2


def test_load_link_to_nothing_is_an_error(paths: Paths) -> None:
    paths.config_file.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"crashd.toml: cannot be read: No such file"):
        load(paths)


def test_load_directories_that_are_files_are_errors(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.config_file.parent.mkdir(parents=True)
    _write(paths.config_dropins, "")
    with pytest.raises(ConfigError, match=r"crashd.toml.d: cannot be read: Not a directory"):
        load(paths)


@pytest.mark.timeout(10)
def test_load_fifo_and_directory_as_dropins_are_errors(paths: Paths) -> None:
    os.mkfifo(paths.config_dropins / "a.toml")
    with pytest.raises(ConfigError, match=r"a\.toml: is not a regular file"):
        load(paths)
    (paths.config_dropins / "a.toml").unlink()
    (paths.config_dropins / "b.toml").mkdir()
    with pytest.raises(ConfigError, match=r"b\.toml: is not a regular file"):
        load(paths)


def test_load_files_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load_files([tmp_path / "none.toml"])


@pytest.mark.skipif(os.geteuid() != 0, reason="files of root can only be made by root")
def test_load_as_root_writable_dropin_is_refused(paths: Paths) -> None:
    _write(paths.config_dropins / "a.toml", "").chmod(0o666)
    with pytest.raises(ConfigError, match=r"a\.toml: can be written by others than root"):
        load(paths)


def test_load_files_size_limit_is_exact(tmp_path: Path) -> None:
    _load(tmp_path, "#" * FILE_MAX)
    assert _error(tmp_path, "#" * (FILE_MAX + 1)) == f"crashd.toml: is larger than {FILE_MAX} bytes"


# -- TOML ------------------------------------------------------------------------------------------


def test_load_files_not_utf8_names_the_line(tmp_path: Path) -> None:
    assert _error(tmp_path, b"# a\n# b\n# \xe9\n") == "crashd.toml:3: is not UTF-8"


def test_load_files_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert _load(tmp_path, b"\xef\xbb\xbfcapture.queue = 7\r\n").capture.queue == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[capture]\nqueue 7\n", "crashd.toml:2:7: Expected '='"),
        ("[capture]\nqueue = 7\nqueue = 8\n", "crashd.toml:3:10: Cannot overwrite a value"),
        ("[capture\n", "crashd.toml:1:9: Expected ']'"),
        ("a = 'x", "crashd.toml: "),
        ("a = " + "9" * 5000, "crashd.toml: "),
        ("a = " + "[" * 100_000, "crashd.toml: is nested too deeply"),
    ],
)
def test_load_files_syntax_error_names_line_and_column(
    tmp_path: Path, text: str, message: str
) -> None:
    assert _error(tmp_path, text).startswith(message)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[capture]\n\nworkes = 2\n",
            "3: unknown key 'capture.workes'; did you mean 'capture.workers'?",
        ),
        ("[captur]\nworkers = 2\n", "1: unknown key 'captur'; did you mean 'capture'?"),
        ("workers = 2\n", "1: unknown key 'workers'; did you mean 'capture.workers'?"),
        ("[http]\nlevel = 'info'\n", "2: unknown key 'http.level'; did you mean 'log.level'?"),
        (
            "[retention]\nprocess = { keepfree = 1 }\n",
            "2: unknown key 'retention.process.keepfree'; "
            "did you mean 'retention.process.keep_free'?",
        ),
        (
            '"capture.mode" = "pipe"\n',
            "1: unknown key '\"capture.mode\"'; did you mean 'capture.mode'?",
        ),
        ("[capture]\nCapture = 1\n", "2: unknown key 'capture.Capture'; did you mean 'capture'?"),
        ("[capture]\nxyzzy = 1\n", "2: unknown key 'capture.xyzzy'"),
        ("[[sections]]\n[[sections]]\n", " unknown key 'sections'"),
        ('"a\\nb\\u001b[2J" = 1\n', "1: unknown key '\"a\\x0ab\\x1b[2J\"'"),
        ("x" * 100_000 + " = 1\n", "1: unknown key '\"" + "x" * 60 + "…\"'"),
    ],
)
def test_load_files_unknown_key_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert _error(tmp_path, text) == f"crashd.toml:{message}"


def test_known_keys_sections_are_among_them() -> None:
    keys = list(known_keys())
    assert {"capture", "capture.mode", "retention.process", "retention.process.keep_free"} < {*keys}
    assert len(keys) == len({*keys})


# -- values ----------------------------------------------------------------------------------------

_WRONG = {
    "capture.mode": ["'sockets'", "'Auto'", "''", "1", "['auto']", "true"],
    "capture.engine": ["'mem'", "'fast'", "1"],
    "capture.buffer": ["-1", "'10%'", "'infinity'", "''", "1.5", "true"],
    "capture.keep_files": ["'101%'", "-1", "'auto'", "'infinity'", "true"],
    "capture.spill": ["'101%'", "-1", "'auto'", "'infinity'", "true"],
    "capture.page_timeout": ["0", "'99ms'", "601", "true"],
    "capture.keep": ["'all'", "true", "'Full'", "[]"],
    "capture.rules": [
        "'mini exe=/x'",
        "['some exe=/x']",
        "['mini']",
        "['mini exe']",
        "['mini exe=']",
        "['mini path=/x']",
        "[1]",
    ],
    "capture.workers": ["0", "65", "-1", "'2'", "2.0", "true", "'Auto'", "[]", "{}", "inf"],
    "capture.max_core": ["-1", "'10%'", "'Infinity'", "'-1'", "''", "1.5", "true", "'8E'"],
    "capture.deadline": ["0", "'999ms'", "86401", "'infinity'", "''", "1.5", "true", "01:00:00"],
    "capture.rlimit": ["'honor'", "true"],
    "capture.queue": ["0", "4097", "'auto'"],
    "capture.pipe_limit": ["0", "10001", "'infinity'"],
    "capture.snapshot_timeout": ["0", "'99ms'", "61"],
    "capture.compression_level": ["0", "20", "'auto'"],
    "capture.threads": ["-1", "65"],
    "limiter.enabled": ["1", "'yes'"],
    **{
        f"limiter.{scope}.{key}": values
        for scope in ("site", "unit", "uid")
        for key, values in {
            "full": ["-1", "1000001", "'5'", "true"],
            "mini": ["-1", "1000001", "0.5"],
            "per": ["0", "'367d'", "true"],
        }.items()
    },
    "retention.process.keep_free": ["'101%'", "'-1%'", "-1", "0.1", "'infinity'", "false"],
    "hooks.url": ["'ftp://x'", "'example.org'", "1", "'https://a b'"],
    "hooks.body": ["'xml'", "1"],
    "hooks.headers_file": ["'relative'", "1", "'/a/../b'"],
    "hooks.timeout": ["0", "'1h'", "true"],
    "hooks.per_hour": ["-1", "100001", "'auto'"],
    "hooks.per_signature": ["0", "100001", "'auto'"],
    "hooks.wait": ["-1", "'2h'", "true"],
    "retention.process.max_use": ["'101%'", "-1", "'all'", "true"],
    "retention.process.max_count": ["0", "'5'", "true", "1.5"],
    "retention.process.max_age": ["'1s'", "0", "true", "'never'"],
    "retention.process.max_per_signature": ["0", "-1", "'auto'"],
    "retention.process.metadata_max_age": ["'1min'", "true"],
    "retention.kernel.max_count": ["-1", "100001", "'none'", "true"],
    "retention.kernel.max_use": ["'10%'", "-1", "true"],
    "retention.kernel.keep_free": ["'101%'", "-1", "'infinity'"],
    "retention.kernel.max_age": ["'1s'", "0", "true", "'never'"],
    "kdump.paths": ["'/var/crash'", "['var/crash']", "['/a/../b']", "[1]", '["/a\\u0000"]'],
    "kdump.rescan": ["0", "'2 days'", "'infinity'", "true"],
    "kdump.live": ["1", "'yes'"],
    "analysis.enabled": ["1", "'on'"],
    "analysis.timeout": ["0", "'2h'", "true"],
    "analysis.memory": ["'1M'", "'1T'", "'infinity'", "true"],
    "analysis.workers": ["0", "17", "'auto'"],
    "analysis.python": ["1"],
    "analysis.build_id_dirs": ["'auto'", "'/a'", "['a']", "['/a/../b']", "[1]"],
    "kdump.vmlinux_dirs": ["'auto'", "'/a'", "['a']", "['/a/../b']", "[1]"],
    "analysis.debuginfod": ["1", "'on'"],
    "http.listen": ["9816", "':9816'", "'localhost'", "'[::1]'", "'a:65536'", "false"],
    "http.web_config": ["'web.yml'", "'/a/../b'", '"/a\\u0000"', "false"],
    "privacy.environ": ["'Scrub'", "false"],
    "privacy.patterns": ["'A'", "[1]", "['']", "['A=B']", '["A\\u0000"]', "[['A']]", "{}"],
    "fleet.url": ["'http://x'", "'s3:x'", "'s3://k:s@b'", "'file://x'", "'s3://b/../c'", "1"],
    "fleet.cores": ["'all'", "true"],
    "fleet.cores_per_signature": ["0", "1001", "'auto'"],
    "fleet.kernel_dumps": ["1", "'yes'"],
    "fleet.bandwidth": ["0", "'1K'", "'10%'", "true"],
    "fleet.labels": ["'a=b'", "['a']", "['A=b']", "['a=b', 'a=c']", '["a=\\u001b"]', "{}"],
    "fleet.recipients": ["'age1'", "['age1x']", "['AGE-SECRET-KEY-1X']", "[1]"],
    "log.level": ["'notice'", "'INFO'", "20"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in _WRONG.items() for value in values]
)
def test_load_files_wrong_value_is_refused(tmp_path: Path, key: str, value: str) -> None:
    message = _error(tmp_path, f"\n{key} = {value}\n")
    assert message.startswith(f"crashd.toml:2: {key}: must be ")
    assert ", not " in message
    assert len(message) < 250


def test_wrong_values_every_key_is_tried() -> None:
    sections = {key.rpartition(".")[0] for key in known_keys()} | {
        "retention.process",
        "retention.kernel",
    }
    assert {*_WRONG} == {*known_keys()} - sections


_RIGHT = {
    "capture.mode": ["'auto'", "'pipe'"],
    "capture.engine": ["'auto'", "'stream'"],
    "capture.workers": ["'auto'", "1", "64"],
    "capture.max_core": ["'infinity'", "0", "'64M'", "'1.5GiB'", str((1 << 63) - 1)],
    "capture.deadline": ["1", "'1s'", "'1 day'", "86400", "'1h30min'"],
    "capture.rlimit": ["'honour'", "'ignore'"],
    "capture.queue": ["1", "4096"],
    "capture.pipe_limit": ["'auto'", "1", "10000"],
    "capture.snapshot_timeout": ["'100ms'", "60"],
    "capture.compression_level": ["1", "19"],
    "capture.threads": ["'auto'", "0", "64"],
    "limiter.enabled": ["true", "false"],
    "limiter.site.full": ["0", "1000000"],
    "limiter.unit.mini": ["0", "7"],
    "limiter.uid.per": ["'1d'", "60"],
    "capture.rules": ["[]", "['mini exe=/a* uid=0', 'metadata signal=SIGABRT']"],
    "capture.buffer": ["'auto'", "0", "'1G'"],
    "capture.keep_files": ["0", "'100%'", "'10G'", "'12.5%'"],
    "capture.spill": ["0", "'100%'", "'10G'", "'12.5%'"],
    "retention.process.keep_free": ["0", "'0%'", "'100%'", "'10G'", "'12.5%'"],
    "hooks.url": ["''", "'https://example.org/crash?x=1'"],
    "hooks.body": ["'json'", "'alertmanager'", "'slack'", "'pagerduty'"],
    "hooks.headers_file": ["''", "'/etc/crashd/webhook.headers'"],
    "hooks.timeout": ["'1s'", "30"],
    "hooks.per_hour": ["0", "60"],
    "hooks.per_signature": ["1", "60"],
    "hooks.wait": ["0", "'30s'"],
    "retention.process.max_use": ["'infinity'", "'5%'", "'10G'", "0"],
    "retention.process.max_count": ["1", "'infinity'"],
    "retention.process.max_age": ["'infinity'", "'1h'", "'30d'"],
    "retention.process.max_per_signature": ["1", "'infinity'"],
    "retention.process.metadata_max_age": ["'infinity'", "'1d'"],
    "retention.kernel.max_count": ["'auto'", "0", "5"],
    "retention.kernel.max_use": ["'infinity'", "'50G'"],
    "retention.kernel.keep_free": ["'5%'", "0"],
    "retention.kernel.max_age": ["'infinity'", "'30d'"],
    "kdump.paths": ["'auto'", "[]", "['/var/crash', '/srv/dumps']"],
    "kdump.rescan": ["'1s'", "300"],
    "kdump.live": ["true", "false"],
    "analysis.enabled": ["true", "false"],
    "analysis.timeout": ["'10s'", "60"],
    "analysis.memory": ["'64M'", "'2G'"],
    "analysis.workers": ["1", "16"],
    "analysis.python": ["true", "false"],
    "http.listen": ["''", "'off'", "'[::1]:0'", "'0.0.0.0:9816'", "'localhost:65535'"],
    "http.web_config": ["''", "'/etc/crashd/web.yml'"],
    "privacy.environ": ["'scrub'", "'drop'", "'keep'"],
    "privacy.patterns": ["[]", "['ACME_*', 'x?[a-z]']"],
    "fleet.url": ["''", "'s3://bucket/a/prefix'", "'gs://b'", "'az://c/p'", "'file:///srv/fleet'"],
    "fleet.cores": ["'none'", "'mini'", "'full'"],
    "fleet.bandwidth": ["'infinity'", "'16K'", "'1G'"],
    "fleet.labels": ["[]", "['role=db', 'site=fra=1']"],
    "fleet.recipients": [
        "[]",
        "['age1zx4t2w9s5rg64k0ze4326x7s8zywwxm739wh8w5t7kulruph5yas38xq94']",
    ],
    "log.level": ["'debug'", "'info'", "'warning'", "'error'"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in _RIGHT.items() for value in values]
)
def test_load_files_right_value_is_taken(tmp_path: Path, key: str, value: str) -> None:
    taken: object = _load(tmp_path, f"{key} = {value}\n")
    for part in key.split("."):
        taken = getattr(taken, part)
    given = tomllib.loads(f"x = {value}")["x"]
    if isinstance(taken, Amount):
        assert taken == parse_size(given)
    elif given == "off":
        assert taken == ""
    else:
        assert taken == (tuple(given) if isinstance(given, list) else given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[capture]\nworkers = 0\n",
            '2: capture.workers: must be "auto" or between 1 and 64, not 0',
        ),
        ("[capture]\nqueue = true\n", "2: capture.queue: must be between 1 and 4096, not true"),
        (
            "[capture]\nrules = ['mini exe=/x', 'tiny exe=/y']\n",
            '2: capture.rules: must be an array of at most 200 rules such as "mini '
            'exe=/usr/bin/*", not an array ("tiny exe=/y": a rule begins with one of full, mini, '
            "metadata)",
        ),
        (
            "[capture]\ndeadline = '5 parsecs'\n",
            '2: capture.deadline: must be a duration between 1s and 1d, not "5 parsecs"',
        ),
        (
            "[http]\nlisten = '::1:9816'\n",
            '2: http.listen: must be "HOST:PORT", "[IPV6]:PORT" or "off", not "::1:9816" '
            "(an IPv6 address needs brackets)",
        ),
        (
            "[privacy]\npatterns = [\n  'A',\n  3,\n]\n",
            "2: privacy.patterns: must be an array of at most 100 patterns of 1 to 128 "
            "characters, not an array (3 is not a pattern of that length)",
        ),
        ("capture = 5\n", "1: capture: must be a table, not 5"),
        ("[[capture]]\n", "1: capture: must be a table, not an array"),
        ("[retention]\nprocess = 'x'\n", '2: retention.process: must be a table, not "x"'),
        ("log.level = '\\x1b[2J'\n", None),
        (
            'log.level = "\\u001b[2J"\n',
            '1: log.level: must be "debug", "info", "warning" or "error", not "\\x1b[2J"',
        ),
    ],
)
def test_load_files_wrong_value_is_explained(
    tmp_path: Path, text: str, message: str | None
) -> None:
    found = _error(tmp_path, text)
    if message is not None:
        assert found == f"crashd.toml:{message}"


def test_load_files_too_many_or_long_patterns_are_refused(tmp_path: Path) -> None:
    assert _load(tmp_path, f"privacy.patterns = {['A' * 128] * 100}\n")
    for patterns in (["A"] * 101, ["A" * 129]):
        assert "privacy.patterns: must be" in _error(tmp_path, f"privacy.patterns = {patterns}\n")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().capture.queue = 5


# -- what the values mean --------------------------------------------------------------------------


@pytest.mark.parametrize(("cpus", "workers"), [(1, 2), (2, 2), (5, 5), (8, 8), (9, 8), (512, 8)])
def test_worker_count_auto_is_between_2_and_8(cpus: int, workers: int) -> None:
    assert CaptureSection().worker_count(cpus) == workers
    assert CaptureSection(workers=3).worker_count(cpus) == 3


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (4, 4), (5, 4), (512, 4)])
def test_thread_count_auto_is_at_most_4(cpus: int, threads: int) -> None:
    assert CaptureSection().thread_count(cpus) == threads
    assert CaptureSection(threads=0).thread_count(cpus) == 0


@pytest.mark.parametrize(
    ("gib", "limit"),
    [(0, 32), (1, 32), (2, 32), (3, 48), (4, 64), (32, 512), (33, 512), (999, 512)],
)
def test_pipe_limit_for_auto_is_one_for_64_mib(gib: int, limit: int) -> None:
    assert CaptureSection().pipe_limit_for(gib << 30) == limit
    assert CaptureSection(pipe_limit=7).pipe_limit_for(gib << 30) == 7


def test_capture_defaults_in_units() -> None:
    capture = CaptureSection()
    assert capture.max_core_bytes == 32 << 30
    assert capture.deadline_ns == 300 * 10**9
    assert capture.snapshot_timeout_ns == 2 * 10**9


def test_max_core_bytes_infinity_is_none() -> None:
    assert CaptureSection(max_core="infinity").max_core_bytes is None
    assert CaptureSection(max_core=0).max_core_bytes == 0


def test_keep_free_default_is_a_tenth_of_the_file_system() -> None:
    assert Settings().retention.process.keep_free.of(1000) == 100


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9816", ("127.0.0.1", 9816)),
        ("[::1]:9816", ("::1", 9816)),
        ("[::]:0", ("::", 0)),
        ("[FE80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("my-host.example.com:80", ("my-host.example.com", 80)),
        ("", None),
        ("off", None),
    ],
)
def test_http_address_is_host_and_port(listen: str, address: tuple[str, int] | None) -> None:
    assert Http(listen=listen).address == address


@pytest.mark.parametrize(
    "listen",
    [
        "9816",
        ":9816",
        "localhost",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost:65536",
        "localhost:٨٠",
        "127.0.0.1",
        "127.0.0:80",
        "127.0.0.256:80",
        "::1:80",
        "[127.0.0.1]:80",
        "[::1]",
        "[::1:80",
        "[]:80",
        "[::g]:80",
        "a b:80",
        "-a:80",
        "a-:80",
        "a..b:80",
        "a/b:80",
        "http://a:80",
        "a" * 64 + ":80",
        "localhost:80\n",
    ],
)
def test_split_listen_wrong_address_is_refused(listen: str) -> None:
    with pytest.raises(ValueError):
        split_listen(listen)
