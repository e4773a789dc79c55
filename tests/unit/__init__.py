"""Tests that touch nothing: no root, no process, no network, no /proc, no sleep."""
