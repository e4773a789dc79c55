"""crashd.records does what typing does."""

import copy
import pickle
from typing import Any
from typing import NamedTuple as TypingNamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.query import Query
from crashd.records import assert_never

FIELDS: Any = [(name, Any) for name in Query._fields]
Theirs: Any = TypingNamedTuple("Query", FIELDS)  # type: ignore[misc]
Theirs.__new__.__defaults__ = tuple(Query._field_defaults[name] for name in Query._fields)
VALUES = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.tuples(st.text(max_size=3)))
NAMES = st.sampled_from([*Query._fields, "x"])


def outcome(kind: Any, values: list[Any], named: dict[str, Any]) -> Any:
    """Return what making one does, and what it then says and does."""
    try:
        made = kind(*values, **named)
    except TypeError:
        return TypeError
    changed = made._replace(limit=5)
    return tuple(made), repr(made), made._asdict(), tuple(changed), made.limit, hash(made)


@given(st.lists(VALUES, max_size=8), st.dictionaries(NAMES, VALUES))
def test_records_behave_as_typings(values: list[Any], named: dict[str, Any]) -> None:
    assert outcome(Query, values, named) == outcome(Theirs, values, named)


def test_records_are_copied_compared_and_matched() -> None:
    query = Query(("nginx",), limit=5)
    assert copy.copy(query) == copy.deepcopy(query) == pickle.loads(pickle.dumps(query)) == query
    assert isinstance(query, Query) and isinstance(query, tuple)
    assert query != Query(("nginx",))
    match query:
        case Query(terms=("nginx",), limit=5):
            pass
        case _:
            pytest.fail("not matched")
    with pytest.raises(AttributeError):
        query.limit = 6  # type: ignore[misc]
    with pytest.raises(TypeError):
        query._replace(nothing=1)  # type: ignore[call-arg]


def test_assert_never_fails() -> None:
    with pytest.raises(AssertionError):
        assert_never("reached")  # type: ignore[arg-type]
