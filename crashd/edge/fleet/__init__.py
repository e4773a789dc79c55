"""A fleet's object storage and its PostgreSQL."""
