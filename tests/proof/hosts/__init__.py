"""Several machines, each in a network namespace, one of them down at a time."""
