"""The configuration: its keys, their values, the files they come from."""
