"""What is kept: rate limits, retention, fairness between users."""
