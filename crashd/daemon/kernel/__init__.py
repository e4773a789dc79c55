"""The kernel's own crashes: kdump directories, pstore, oopses, dropped cores."""
