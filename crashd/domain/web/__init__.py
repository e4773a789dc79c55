"""HTTP heads and the web configuration."""
