"""`make chaos SECONDS=60 SEED=…`: the real installation, under faults, judged at the end."""
