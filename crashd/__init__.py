"""crashd collects, keeps and explains the crashes of one Linux host."""

__version__ = "0.1.0"
