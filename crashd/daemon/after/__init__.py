"""What follows a capture: analysis, retention, notices."""
