"""The floor that everything but `domain` may stand on: files and messages, each written once."""
