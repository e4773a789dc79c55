"""What reads hostile cores, inside the sandbox of crashd.edge.sandbox.start and nowhere else."""
