"""The metrics server and what guards it."""
