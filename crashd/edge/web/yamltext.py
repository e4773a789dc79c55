"""YAML. Only importer of yaml."""

from typing import Any

import yaml

from crashd.errors import FormatError


class _Loader(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML lets pass: a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is no plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r:.60} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(raw: bytes) -> object:
    """Parse one document of plain values.

    Raises:
        FormatError: it is no YAML; says where, in one line.

    """
    try:
        return yaml.load(raw, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise FormatError(f"{where}{e.problem or 'no YAML'}") from e
    except yaml.YAMLError as e:
        raise FormatError("not text that YAML can be") from e
    except (ValueError, RecursionError, OverflowError) as e:
        raise FormatError("a value that is too large, or too deep") from e
