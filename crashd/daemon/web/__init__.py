"""Assembly of the metrics endpoint."""
