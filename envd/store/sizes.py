"""How large an environment is: all its files, and those that nothing else shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of all files, each once, and of those with no other name (hardlink) anywhere."""

    total: int
    exclusive: int
