"""What makes two specs different, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

_TELLING = 8

_NAMES = {
    "as_of": "what is left open is resolved as of",
    "bounds": "bound where the packages of then allow it",
    "best_match": "all indexes are asked for every package",
    "build": "build dependency",
    "build_constraints": "limit on builds",
    "channels": "channel",
    "closed": "the requirements are a whole lock",
    "constraints": "constraint",
    "find_links": "place of packages",
    "manager": "manager",
    "no_binary": "built from source",
    "no_index": "no index is asked",
    "only_binary": "taken as a wheel only",
    "packages": "conda package",
    "prereleases": "pre-releases are taken",
    "requirements": "requirement",
    "urls": "index",
    "v": "version of the spec",
    "variables": "variable",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two specs differ; None where one of them has no such thing."""

    field: str
    first: str | None
    second: str | None

    @property
    def message(self) -> str:
        """Return it in words."""
        name = _NAMES.get(self.field.rpartition(".")[2], self.field.replace(".", "'s "))
        if self.second is None:
            return f"{name}: only the first has {self.first}"
        if self.first is None:
            return f"{name}: only the second has {self.second}"
        return f"{name}: {self.first} in the first, {self.second} in the second"

    def document(self) -> dict[str, str | None]:
        """Return it as JSON values."""
        return {"field": self.field, "first": self.first, "second": self.second,
                "message": self.message}  # fmt: skip


def between(first: Document, second: Document) -> list[Difference]:
    """Return every difference between two canonical documents of specs, field by field."""
    return [one for key in sorted({*first, *second})
            for one in _differences(key, first.get(key), second.get(key))]  # fmt: skip


def _differences(field: str, first: Any, second: Any) -> Iterator[Difference]:
    if first == second:
        return
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted({*first, *second}):
            yield from _differences(f"{field}.{key}", first.get(key), second.get(key))
    elif isinstance(first, list) and isinstance(second, list):
        yield from _list_differences(field, first, second)
    else:
        yield Difference(field, _shown(first), _shown(second))


def _list_differences(field: str, first: list[Any], second: list[Any]) -> Iterator[Difference]:
    ours, theirs = _by_name(first, second), _by_name(second, first)
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            yield Difference(field, ours.get(name), theirs.get(name))
    if sorted(map(_shown, first)) == sorted(map(_shown, second)):
        order = " > ".join(map(_shown, first)), " > ".join(map(_shown, second))
        yield Difference(field, *order)


def _by_name(items: list[Any], others: list[Any]) -> dict[str, str]:
    """Return what only *items* has, by the name of the distribution, so that versions meet."""
    found: dict[str, list[str]] = {}
    for one in items:
        if one not in others:
            name = one["name"] if isinstance(one, Mapping) else _name(one)
            found.setdefault(name, []).append(_shown(one))
    return {name: ", ".join(sorted(shown)) for name, shown in found.items()}


def _name(one: Any) -> str:
    """Return the name of a variable, of a conda package (`numpy ==1.2`), or the text itself."""
    return str(one[0] if isinstance(one, list) else one).partition(" ")[0].partition("[")[0]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        # A variable: what stands beside the name only tells its value from others.
        return f"`{value[0]}` (value {value[1][:_TELLING]})"
    if isinstance(value, Mapping):
        source = f" @ {value['source']}" if value.get("source") else ""
        hashes = f" ({', '.join(value['hashes'])})" if value.get("hashes") else ""
        return f"`{value.get('text') or value.get('name', '')}{source}{hashes}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`" if value != "" else "today"
