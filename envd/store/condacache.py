"""What rattler and envd keep of conda packages, and what of it can be taken out.

    pkgs/<name>-<version>-<build>-<digits>/   an unpacked package; environments link its files
    repodata/*                                what channels have

Who links packages or puts them there holds a file, as `envd.build.conda_cache` says.
"""

from __future__ import annotations

from pathlib import Path

from envd.store.layout import Layout
from envd.store.uvcache import entries


class CondaCache:
    """The cache of conda packages of one root."""

    def __init__(self, layout: Layout) -> None:
        """Look below the root of *layout*."""
        self._home = layout.downloads / "conda"
        self.lock = layout.held("conda-cache")

    def packages(self) -> list[Path]:
        """Return the unpacked packages."""
        return [one for one in entries(self._home / "pkgs") if one.is_dir()]

    def linked(self, tree: Path) -> list[Path]:
        """Return the packages that the environments in *tree*, or one that it is, have files of."""
        records = (*tree.glob("conda-meta/*.json"), *tree.glob("*/conda-meta/*.json"))
        names = {one.stem for one in records}
        return [one for one in self.packages() if one.name.rpartition("-")[0] in names]

    def repodata(self) -> list[Path]:
        """Return what is known of channels."""
        return entries(self._home / "repodata")
