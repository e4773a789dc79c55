"""One crash read and stored, in a worker process of its own."""
