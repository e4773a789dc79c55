"""Parses YAML. Only importer of yaml."""

from typing import Any

import yaml

from crashd.errors import FormatError


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, which YAML forbids and PyYAML accepts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a plain value", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r:.60}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(raw: bytes) -> object:
    """Parse one document of plain values.

    Raises:
        FormatError: it is not valid YAML; the message says where, in one line.
    """
    try:
        return yaml.load(raw, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise FormatError(f"{where}{e.problem or 'not YAML'}") from e
    except yaml.YAMLError as e:
        raise FormatError("not valid YAML text") from e
    except (ValueError, RecursionError, OverflowError) as e:
        raise FormatError("a value is too large, or nested too deeply") from e
