"""Names of objects: what is built is parsed again, and nothing else is."""

import pytest

from crashd.domain.fleet import keys
from crashd.errors import FormatError

HOST, BOOT = "ab" * 16, "0123456789abcdef" * 2
ID = "20261127t233000-01234567-4711-k3v9x0ab"
TIME_NS = 1_795_822_200 * 10**9  # 2026-11-27 23:30:00


def test_records_key_is_parsed_to_what_it_was_built_from() -> None:
    key = keys.records_key(HOST, TIME_NS, BOOT, 17)
    assert key == f"records/v1/{HOST}/2026-11-27/23/{BOOT}-00000000000000000017.jsonl.zst"
    hour_ns = TIME_NS - 30 * 60 * 10**9
    assert keys.parse_records_key(key) == keys.RecordsKey(HOST, hour_ns, BOOT, 17)
    assert key.startswith(keys.hour_prefix(HOST, hour_ns))


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("part", keys.Part)
def test_core_key_is_parsed_to_what_it_was_built_from(part: keys.Part, encrypted: bool) -> None:
    key = keys.core_key(HOST, ID, encrypted=encrypted, part=part)
    assert key == f"cores/v1/{HOST}/{ID}.{part}.zst" + (".age" if encrypted else "")
    assert keys.parse_core_key(key) == keys.CoreKey(HOST, ID, part, encrypted)


def test_want_key_is_parsed_to_its_host() -> None:
    assert keys.parse_want_key(keys.want_key(HOST)) == HOST


@pytest.mark.parametrize("host", ["", "..", HOST.upper(), HOST + "/", HOST[:-1], "../" + HOST])
def test_keys_of_no_host_are_refused(host: str) -> None:
    with pytest.raises(FormatError):
        keys.records_key(host, TIME_NS, BOOT, 1)
    with pytest.raises(FormatError):
        keys.core_key(host, ID, encrypted=False)
    with pytest.raises(FormatError):
        keys.want_key(host)
    with pytest.raises(FormatError):
        keys.hour_prefix(host, TIME_NS)


@pytest.mark.parametrize("crash_id", ["", "../../x", ID + "/..", ID.upper(), ID + "\n"])
def test_core_key_of_no_id_is_refused(crash_id: str) -> None:
    with pytest.raises(FormatError):
        keys.core_key(HOST, crash_id, encrypted=False)


@pytest.mark.parametrize(("boot", "sequence"), [("x", 1), (BOOT, -1), (BOOT, 1 << 63)])
def test_records_key_of_wrong_parts_is_refused(boot: str, sequence: int) -> None:
    with pytest.raises(FormatError):
        keys.records_key(HOST, TIME_NS, boot, sequence)


def test_every_change_of_a_key_but_a_digit_is_refused() -> None:
    for key in (keys.records_key(HOST, TIME_NS, BOOT, 1), keys.core_key(HOST, ID, encrypted=True)):
        parse = keys.parse_records_key if key.startswith("records") else keys.parse_core_key
        for end in range(len(key)):
            if key[:end].endswith(".zst"):
                continue  # the name of the same core in the clear
            with pytest.raises(FormatError):
                parse(key[:end])
            with pytest.raises(FormatError):
                parse(key[:end] + "\x1b" + key[end + 1 :])
        for wrong in (key + "\n", "/" + key, key + "/", key.replace("/v1/", "/v2/")):
            with pytest.raises(FormatError):
                parse(wrong)


@pytest.mark.parametrize(
    "day", ["2026-13-01/00", "2026-11-31/00", "2026-11-27/24", "0000-01-01/00"]
)
def test_records_key_of_no_hour_is_refused(day: str) -> None:
    with pytest.raises(FormatError):
        keys.parse_records_key(f"records/v1/{HOST}/{day}/{BOOT}-{1:020d}.jsonl.zst")
