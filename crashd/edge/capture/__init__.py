"""Crashing processes and the sockets that they come by."""
