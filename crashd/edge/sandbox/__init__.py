"""Sealed processes: how they are started, confined and asked."""
