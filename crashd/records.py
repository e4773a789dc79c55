"""NamedTuple and assert_never as typing's, for modules that `crashctl list` loads.

Loading typing, and collections with it, takes as long as reading and printing a listing. Type
checkers see the real one; what is here does the same for classes that name all their fields, and
a test compares the two. Modules that use it begin with `from __future__ import annotations`.
"""

from __future__ import annotations

from _operator import itemgetter  # operator's, which is loaded with collections

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
    from typing import assert_never as assert_never
else:

    def assert_never(value):
        """Fail; type checkers see that no call is reached."""
        raise AssertionError(f"unexpected {value!r}")

    class _Fields(type):
        """Gives each class below NamedTuple a property for each annotation."""

        def __new__(mcs, name, bases, space):
            if bases == (tuple,):
                return super().__new__(mcs, name, bases, space)
            fields = tuple(space["__annotations__"])
            defaults = {field: space.pop(field) for field in fields if field in space}
            space |= {field: property(itemgetter(place)) for place, field in enumerate(fields)}
            space |= {"_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
            space.setdefault("__slots__", ())
            return super().__new__(mcs, name, bases, space)

    class NamedTuple(tuple, metaclass=_Fields):
        """A tuple whose items have names; see typing.NamedTuple."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            if not named and len(values) == len(cls._fields):
                return tuple.__new__(cls, values)
            given = {**cls._field_defaults, **dict(zip(cls._fields, values, strict=False)), **named}
            twice = named.keys() & set(cls._fields[: len(values)])
            if len(values) > len(cls._fields) or given.keys() != set(cls._fields) or twice:
                raise TypeError(f"{cls.__name__}() does not take these fields")
            return tuple.__new__(cls, [given[field] for field in cls._fields])

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            shown = ", ".join(f"{k}={v!r}" for k, v in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({shown})"

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changed):
            return type(self)(**{**self._asdict(), **changed})
