"""What shows crashes: list, info, top, stats, report."""
