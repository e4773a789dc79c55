"""Verbs that do something else for a fleet than for this host."""
