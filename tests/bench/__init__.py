"""What a crash costs, by crashd and by others: `python -m tests.bench`, as root.

cases.py      what crashes: *.c, compiled into a scratch directory
sides.py      who catches it; each has its own kernel.core_pattern
sysctls.py    the right to set that, and putting it back
measure.py    one crash, or one storm, on one side
report.py     medians, ratios, targets, tables, JSON: pure
"""
