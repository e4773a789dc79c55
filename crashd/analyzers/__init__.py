"""What reads hostile cores, inside the sandbox of crashd.edge.sandbox and nowhere else."""
