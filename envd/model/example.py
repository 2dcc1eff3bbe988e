"""Reads the example of an input that MLflow saves with a model."""

from __future__ import annotations

from envd.errors import ModelInvalidError
from envd.model import files
from envd.model.mlmodel import Model


def read(model: Model) -> str | None:
    """Return the text of the example in *model*; None if there is none that can be read."""
    if model.input_example is None or not files.exists(model.path, model.input_example):
        return None
    try:
        return files.read_text(model.path, model.input_example)
    except ModelInvalidError:
        # It is for people only; the model may be used without.
        return None
