"""A simulated fleet: what any number of hosts would write, and how fast it is indexed and asked."""
