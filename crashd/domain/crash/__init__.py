"""What a crash is: its record, its parts and where they come from."""
