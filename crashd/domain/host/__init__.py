"""What a host must have for crashes to be caught."""
