"""Reports in the kernel's log: where they begin, title, signature."""
