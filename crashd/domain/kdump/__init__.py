"""Kernel dumps on disk: formats, directories, kdump's configuration."""
