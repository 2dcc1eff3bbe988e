"""Runs MLflow models, each in the environment it asks for, built once and kept."""

__version__ = "0.1.0"
