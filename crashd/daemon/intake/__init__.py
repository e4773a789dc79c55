"""Accept crashes in the daemon, and assign each to a worker."""
