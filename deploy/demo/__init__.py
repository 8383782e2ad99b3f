"""The demo: a board of orders, and everything that it needs, on this machine."""
