"""The daemon: composes domain, store and edge; the only package that decides and logs."""
