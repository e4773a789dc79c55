"""Disk and SQLite: entries, spool, index. May import errors, corehandler and domain."""
