"""How crashes reach the daemon, and which worker takes them."""
