"""What a model says of itself, and where it lies."""

from envd.model.mlmodel import Model, Models, read

__all__ = ["Model", "Models", "read"]
