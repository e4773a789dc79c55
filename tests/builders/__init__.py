"""Makers of foreign bytes, sound and hostile, for tests."""
