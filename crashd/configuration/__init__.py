"""The configuration: its keys, their values, and its files."""
