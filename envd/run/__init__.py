"""Runs models: a process of its environment's own Python for each."""
