"""Sending crashes to the fleet's object storage: what the daemon does of it."""
