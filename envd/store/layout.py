"""Where everything lies below a root; the drawing is in the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below one root."""

    root: Path

    @property
    def environments(self) -> Path:
        """One directory per environment id."""
        return self.root / "environments"

    @property
    def trash(self) -> Path:
        """What is about to be deleted."""
        return self.root / "trash"

    @property
    def scratch(self) -> Path:
        """What workers may write in."""
        return self.root / "scratch"

    def environment(self, env_id: str) -> Path:
        """Everything of one environment."""
        return self.environments / env_id

    def manifest(self, env_id: str) -> Path:
        """The file that makes it ready."""
        return self.environment(env_id) / "ready.json"

    def used_by(self, env_id: str) -> Path:
        """One file per model that used it."""
        return self.environment(env_id) / "used-by"

    def spec(self, spec_key: str) -> Path:
        """The canonical document of a spec."""
        return self.root / "specs" / spec_key / "spec.json"

    def lock(self, spec_key: str, day: str = "") -> Path:
        """The lock of a spec; of one *day* where that of the whole month has no answer."""
        return self.root / "specs" / spec_key / f"lock{'-' if day else ''}{day}.json"

    def log(self, spec_key: str) -> Path:
        """The log of a spec's last build."""
        return self.root / "logs" / f"{spec_key}.log"

    def held(self, name: str) -> Path:
        """A file to take a kernel lock on."""
        return self.root / "held" / name
