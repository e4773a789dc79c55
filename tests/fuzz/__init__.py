"""Fuzzing of every parser that sees foreign bytes: `python -m tests.fuzz --seconds 60`."""
