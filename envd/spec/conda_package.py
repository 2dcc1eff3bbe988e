"""One conda package: an archive of a channel, by its hash."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from envd.spec import channels, conda_version
from envd.spec.match_spec import MatchSpec


@dataclass(frozen=True, slots=True, order=True)
class CondaPackage:
    """One conda package: what a channel's index says of it, as far as installing needs it.

    `url` is where its channel has it (`https://conda.anaconda.org/...`), whatever mirror it
    is fetched from; `sha256` and `md5` are hexadecimal, `size` bytes. `noarch` is `python`,
    `generic` or nothing; `site_packages` is where a Python has its packages, below the
    prefix, if it says so.
    """

    name: str
    version: str
    build: str
    build_number: int
    subdir: str
    url: str
    sha256: str
    md5: str = ""
    size: int = 0
    noarch: str = ""
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    site_packages: str = ""

    @property
    def stem(self) -> str:
        """What its file is called but for the suffix."""
        return f"{self.name}-{self.version}-{self.build}"

    @property
    def cached_as(self) -> str:
        """What its directory in the cache is called: two channels may have one of its name."""
        return f"{self.stem}-{self.sha256[:16]}"

    def satisfies(self, asked: MatchSpec) -> bool:
        """Whether it is what *asked* asks for; the number of its build is not looked at.

        A lock does not have that.
        """
        build = re.escape(asked.build or "*").replace(r"\*", ".*")
        return (
            self.name == asked.name
            and conda_version.allows(asked.version, self.version)
            and re.fullmatch(build, self.build) is not None
            and asked.channel in {None, channels.parse(self.url.rpartition("/")[0])}
            and asked.subdir in {"", self.subdir}
            and asked.md5 in {"", self.md5}
            and asked.sha256 in {"", self.sha256}
        )


def conda_package(document: dict[str, Any]) -> CondaPackage:
    """Return the package that `dataclasses.asdict` and JSON made *document* of."""
    lists = {key: tuple(value) for key, value in document.items() if isinstance(value, list)}
    return CondaPackage(**(document | lists))
