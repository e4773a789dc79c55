"""Whether this host is set up: doctor, kdump."""
