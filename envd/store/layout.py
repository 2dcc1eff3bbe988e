"""Where everything lies below a root; the drawing is in the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Where directories lie that need no room on the disk, and what their names begin with: below
# no root, on a filesystem that is always there.
IN_MEMORY = Path("/dev/shm"), "envd-scratch."  # noqa: S108


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

    def doomed(self, env_id: str) -> Path:
        """What its manifest is called once it is to be removed."""
        return self.environment(env_id) / "deleting.json"

    def used(self, env_id: str) -> Path:
        """The file whose mtime is its last use, and whose size the number of its uses."""
        return self.environment(env_id) / "used"

    def files(self, env_id: str, attempt: str) -> Path:
        """The list of an attempt's files, made when it was published."""
        return self.environment(env_id) / f"{attempt}.files"

    def pin(self, env_id: str) -> Path:
        """The file that keeps it from gc."""
        return self.root / "pins" / env_id

    def failure(self, spec_key: str, day: str = "") -> Path:
        """How the last build of a spec failed."""
        return self.root / "failures" / f"{spec_key}{'-' if day else ''}{day}.json"

    @property
    def index(self) -> Path:
        """The list of what is here: disposable."""
        return self.root / "index.sqlite"

    @property
    def downloads(self) -> Path:
        """The installers' caches."""
        return self.root / "cache"

    @property
    def wheels(self) -> Path:
        """What no index had as a wheel."""
        return self.root / "wheels"

    @property
    def models(self) -> Path:
        """Downloads of model URIs."""
        return self.root / "models"

    @property
    def logs(self) -> Path:
        """What builds and workers said."""
        return self.root / "logs"

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

    def leased(self, env_id: str) -> Path:
        """The file held shared by whoever uses an environment."""
        return self.held(f"lease-{env_id}")

    def building(self, env_id: str) -> Path:
        """The file held by whoever builds or removes an environment."""
        return self.held(f"build-{env_id}")

    def held(self, name: str) -> Path:
        """A file to take a kernel lock on."""
        return self.root / "held" / name
