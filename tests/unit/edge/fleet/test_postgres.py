"""What psycopg is given; the database itself is in tests/integration."""

from crashd.edge.fleet.postgres import encoded


def test_encoded_is_a_text_because_old_psycopg_takes_no_bytes() -> None:
    given = encoded('{"title":"später"}'.encode())
    assert given.dumps is not None
    assert given.dumps(given.obj) == '{"title":"später"}'
