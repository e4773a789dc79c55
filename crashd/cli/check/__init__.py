"""Checks of this host's setup: doctor, kdump."""
