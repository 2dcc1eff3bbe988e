"""What distributions bring with them, as the metadata of those that are installed says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from envd.infer.observing import Distribution


@dataclass(frozen=True)
class Installed:
    """The distributions of an environment, and what its markers are evaluated by."""

    distributions: Mapping[str, Distribution]
    markers: Mapping[str, str]

    def brought(
        self, keys: Iterable[str], extras: Mapping[str, Iterable[str]] | None = None
    ) -> set[str]:
        """Return the keys of all that *keys*, with their *extras*, require, however far down.

        One of *keys* is among them only if another requires it.
        """
        given = extras or {}
        ahead = [(key, extra) for key in keys for extra in ("", *given.get(key, ()))]
        seen = set(ahead)
        found: set[str] = set()
        while ahead:
            key, extra = ahead.pop()
            for one in self.required(key, extra):
                name = canonicalize_name(one.name)
                found.add(name)
                more = {(str(name), each) for each in ("", *one.extras)} - seen
                seen |= more
                ahead += more
        return found

    def required(self, key: str, extra: str = "") -> Iterator[Requirement]:
        """Yield what *key* requires with the *extra*, and for `""` without any."""
        found = self.distributions.get(key)
        for one in found.requires if found else ():
            if self._applies(one, extra) and not (extra and self._applies(one, "")):
                yield one

    def _applies(self, requirement: Requirement, extra: str) -> bool:
        if requirement.marker is None:
            return not extra
        try:
            return requirement.marker.evaluate({**self.markers, "extra": extra})
        except UndefinedEnvironmentName:
            return False

    def has(self, requirement: Requirement) -> bool:
        """Whether what is *required* is installed, in a version that it allows."""
        found = self.distributions.get(canonicalize_name(requirement.name))
        return found is not None and requirement.specifier.contains(found.version, prereleases=True)
