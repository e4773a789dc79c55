"""Read and store one crash, in its own worker process."""
