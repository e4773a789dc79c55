import pytest

from crashd.edge.web.yamltext import parse_yaml
from crashd.errors import FormatError


def test_parse_plain_values() -> None:
    assert parse_yaml(b"a: {b: [1, true, 'x']}\n") == {"a": {"b": [1, True, "x"]}}
    assert parse_yaml(b"") is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a: 1\na: 2\n", "line 2, column 1: duplicate key 'a'"),
        (b"a: {b: 1, b: 2}\n", "duplicate key 'b'"),
        (b"a: [1\n", "line 2, column 1"),
        (b"a: !!python/object/apply:os.system [id]\n", "line 1, column 4"),
        (b"? [1, 2]\n: 3\n", "not a plain value"),
        (b"x: &x {a: 1}\ny: {<<: *x}\n", "line 2"),
        (b"a: 1\n---\nb: 2\n", "line 2, column 1"),
        (b"\xff\xfe\xfd", "not valid YAML text"),
        (b"a: \0\n", "not valid YAML text"),
        (b"[" * 30_000, "too deep"),
        (b"a: 0x" + b"f" * 10_000 + b"\nb: " + b"9" * 10_000, "too large"),
        (b"a: 2001-99-99\n", "too large"),
    ],
)
def test_parse_what_is_wrong_is_one_line(raw: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as error:
        parse_yaml(raw)
    assert "\n" not in str(error.value)


def test_parse_aliases_of_aliases_take_no_memory() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    found = parse_yaml("\n".join(lines).encode())
    assert isinstance(found, dict)
    assert len(found) == 60
