"""A place in a model's files, for messages."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from envd.errors import EnvdError, ModelInvalidError


class Place(NamedTuple):
    """A line of a file of a model."""

    model: Path
    file: str
    line: int

    def where(self) -> str:
        """Return what to call it."""
        return f"`{self.model / self.file}`, line {self.line}"

    def invalid(self, why: str, **metadata: object) -> EnvdError:
        """Return the error that says *why* this line cannot be used."""
        return ModelInvalidError(
            f"{self.where()}: {why}",
            model=self.model,
            path=self.file,
            line=self.line,
            **metadata,
        )
