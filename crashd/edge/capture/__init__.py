"""Crashing processes, and the sockets through which their cores arrive."""
