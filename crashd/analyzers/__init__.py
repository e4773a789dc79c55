"""The code that reads hostile cores, only inside the sandbox of crashd.edge.sandbox.start."""
