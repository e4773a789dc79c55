"""Cores and modules as ELF: headers, notes, mappings."""
