"""What changes the store or the host: delete, pin, vacuum, verify, install, status."""
