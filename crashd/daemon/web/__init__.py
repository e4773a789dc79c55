"""The metrics endpoint put together."""
