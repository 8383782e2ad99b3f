"""Proofs of the promise: a model, random histories, deaths at every step, chaos."""
