"""Pure functions and frozen values: bytes in, values out; no I/O, no logging."""
