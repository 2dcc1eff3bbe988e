"""What one caller says of a model's dependencies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a model's dependencies are read, beside the settings.

    The requirements `override` take the place of the model's own. `env_manager` is
    `virtualenv`, `conda` or `auto`, and empty for what the settings say. With `fresh` a
    lock that lies in the model is passed over.
    """

    override: tuple[str, ...] = ()
    env_manager: str = ""
    fresh: bool = False
