"""What an analysis needs to be installed."""

import importlib.util
from typing import Final

FOR_ANALYSES: Final = ("drgn", "capstone", "pyseccomp", "rust_demangler")
"""Modules that an analysis imports and that are not to be had everywhere: of drgn, PyPI has only
wheels for x86-64.
"""


def missing_for_analyses() -> list[str]:
    """Name the modules that are not installed and without which no crash can be analysed."""
    return [name for name in FOR_ANALYSES if importlib.util.find_spec(name) is None]
