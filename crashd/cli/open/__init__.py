"""What hands out a core: dump, debug, bundle."""
