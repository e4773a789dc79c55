"""The work after a capture: analysis, retention, notices."""
