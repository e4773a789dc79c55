"""Verbs that change or check the store or the host: delete, pin, verify, install and others."""
