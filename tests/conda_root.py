"""A root that conda packages are installed below, from the tests' own conda-forge."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from envd.build import conda
from envd.child import Limits
from envd.config import Settings
from envd.events import Event, Line
from envd.lock.rattler import Rattler
from envd.settings.sections import Conda
from envd.spec.conda_package import CondaPackage
from tests.conda_channel import Channel, Package
from tests.mirror import Mirror

FORGE = "https://conda.anaconda.org/conda-forge"


def locked(channel: Channel, url: str = FORGE) -> list[CondaPackage]:
    """Return all packages of *channel*, which is at *url*, as a lock has them."""
    return [
        CondaPackage(
            name=one["name"],
            version=one["version"],
            build=one["build"],
            build_number=one["build_number"],
            subdir=subdir,
            url=f"{url}/{subdir}/{file}",
            sha256=one["sha256"],
            md5=one["md5"],
            size=one["size"],
            noarch=one.get("noarch", ""),
            depends=tuple(one["depends"]),
            constrains=tuple(one["constrains"]),
        )
        for subdir, records in channel.records.items()
        for file, one in records.items()
    ]


@dataclass
class CondaRoot:
    """A root, and what its last installation said."""

    settings: Settings
    events: list[Event] = field(default_factory=list)

    @classmethod
    def at(cls, root: Path, *mirrors: Mirror, login: str = "") -> CondaRoot:
        """Return a root for which *mirrors* are conda-forge."""
        root.mkdir(parents=True)
        urls = [f"http://{login}127.0.0.1:{one.port}/conda-forge" for one in mirrors]
        conda = Conda(mirrors=tuple(f"conda-forge={url}" for url in urls))  # type: ignore[arg-type]
        return cls(Settings(root, conda=conda))

    @property
    def packages(self) -> Path:
        return self.settings.root / "cache" / "conda" / "pkgs"

    def cached(self, package: Package) -> Path:
        """Return where *package* lies in the cache."""
        (found,) = self.packages.glob(f"{package.stem}-*")
        return found

    def changed(self, section: str, **settings: object) -> CondaRoot:
        """Return the same root with other settings."""
        of = replace(getattr(self.settings, section), **settings)
        return CondaRoot(replace(self.settings, **{section: of}))

    def install(
        self, packages: list[CondaPackage], name: str = "env", limits: Limits | None = None
    ) -> Path:
        """Install *packages* into a new prefix, and return that."""
        self.events.clear()
        prefix = self.settings.root / name
        conda.install(packages, prefix, Rattler(self.settings, limits=limits), self.events.append)
        return prefix

    @property
    def lines(self) -> list[str]:
        return [one.text for one in self.events if isinstance(one, Line)]


def files(prefix: Path) -> dict[str, bytes | str]:
    """Return what is in *prefix*, as it would be in any: its own path and notes left out."""
    here = str(prefix).encode()
    return {
        str(path.relative_to(prefix)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes().replace(here, b"<prefix>") + oct(path.stat().st_mode).encode()
        for path in prefix.rglob("*")
        if (path.is_symlink() or path.is_file())
        and path.parent.name not in {"conda-meta", "__pycache__"}
    }
