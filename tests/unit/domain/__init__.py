"""Tests of crashd.domain."""
