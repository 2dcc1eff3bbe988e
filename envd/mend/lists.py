"""The lists of requirements that lie in a model, as they stand in its files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from envd.errors import ModelInvalidError
from envd.model import Model, documents, files
from envd.spec import requirement_text
from envd.spec.requirement_text import Line
from envd.spec.yaml_lists import Edit, append_edit, applied, line_end, list_edits

_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_COPIES = "metadata"
_REQUIREMENTS = "requirements.txt"
_MAX_FILES = 100


@dataclass(frozen=True, slots=True)
class Listing:
    """A file of a model that holds a list of requirements, in the `key` of it if it is YAML."""

    file: str
    text: str
    key: str
    lines: tuple[Line, ...]

    def edited(self, changes: Mapping[int, str | None], added: Sequence[str]) -> str:
        """Return the text of the file with its lines changed; those that become None go.

        Raises:
            ValueError: it is laid out so that it cannot be edited.
        """
        if not changes and not added:
            return self.text
        if not self.key:
            return requirement_text.edited(self.text, changes, added)
        return _yaml_edited(self.text, self.key, changes, added)

    def included(self, target: str) -> str:
        """Return the name in the model of a file that a line of this calls *target*."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.file), target))


@dataclass(frozen=True, slots=True)
class Spot:
    """A line of a listing, by its place in it."""

    listing: Listing
    place: int

    @property
    def line(self) -> Line:
        """The line itself."""
        return self.listing.lines[self.place]


class Lists:
    """The lists of one model: `roots` are what managers read first, and MLflow's copies of it."""

    def __init__(self, model: Model) -> None:
        """Read them.

        Raises:
            ModelInvalidError: a file cannot be read.
        """
        self._model = model.path
        self._known: dict[str, Listing | None] = {}
        named = (
            (model.virtualenv_file, "dependencies"),
            (_REQUIREMENTS, ""),
            (model.conda_file, "pip"),
        )
        places = [(name, key) for name, key in named if name]
        # On Databricks copies of the files lie there (`_copy_model_metadata_for_uc_sharing`).
        places += [(f"{_COPIES}/{name}", key) for name, key in places]
        found = (self._listing(name, key) for name, key in places)
        self.roots = tuple(one for one in found if one)

    def all(self) -> tuple[Listing, ...]:
        """Return every list there is, those that are included and constraints too."""
        for root in self.roots:
            list(self.reached(root))
            list(self.constraints(root))
        return tuple(one for one in self._known.values() if one)

    def reached(self, root: Listing) -> Iterator[Spot]:
        """Yield the lines that *root* comes to, in their order, with those it includes.

        Each file once: five files of 1,000 includes each come to 10**15 lines.
        """
        yield from self._reached(root, {root.file})

    def _reached(self, listing: Listing, seen: set[str]) -> Iterator[Spot]:
        for place, line in enumerate(listing.lines):
            yield Spot(listing, place)
            inner = listing.included(line.include) if line.include else ""
            found = self._listing(inner, "") if inner and inner not in seen else None
            if found:
                seen.add(inner)
                yield from self._reached(found, seen)

    def constraints(self, root: Listing) -> Iterator[Spot]:
        """Yield the lines of the files that constrain what *root* comes to."""
        for spot in self.reached(root):
            name = spot.listing.included(spot.line.constrain) if spot.line.constrain else ""
            found = self._listing(name, "") if name else None
            if found:
                yield from (Spot(found, place) for place in range(len(found.lines)))

    def end_of(self, root: Listing) -> Listing:
        """Return the list that what is added to *root* belongs into.

        That is the file that a list of a YAML file includes, else the list itself.
        """
        for line in root.lines if root.key else ():
            found = self._listing(root.included(line.include), "") if line.include else None
            if found:
                return found
        return root

    def _listing(self, name: str, key: str) -> Listing | None:
        if name not in self._known and len(self._known) < _MAX_FILES:
            self._known[name] = _read(self._model, name, key)
        return self._known.get(name)


def _read(model: Path, name: str, key: str) -> Listing | None:
    if not files.exists(model, name):
        return None
    text = files.read_text(model, name)
    if not key:
        return Listing(name, text, key, requirement_text.read(text))
    # Sees that it is YAML that may be used.
    documents.read(model, name)
    entries = [one for node in _nodes(text, key) for one in node.value]
    if not all(isinstance(one, yaml.ScalarNode) for one in entries):
        message = f"`{model / name}`: `{key}` is not a list of texts"
        raise ModelInvalidError(message, model=model, path=name, key=key)
    lines = (
        requirement_text.line(
            one.start_mark.line + 1 if one.start_mark else 0,
            requirement_text.without_comment(one.value),
        )
        for one in entries
    )
    return Listing(name, text, key, tuple(lines))


def _nodes(text: str, key: str) -> list[yaml.SequenceNode]:
    """Return the lists in *text* that *key* means: `pip` those of a conda environment."""
    root = yaml.compose(text, Loader=_Loader)
    found = _value(root, "dependencies")
    if key == "pip":
        entries = found.value if isinstance(found, yaml.SequenceNode) else []
        values = [_value(one, "pip") for one in entries]
    else:
        values = [found]
    return [one for one in values if isinstance(one, yaml.SequenceNode)]


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _yaml_edited(
    text: str, key: str, changes: Mapping[int, str | None], added: Sequence[str]
) -> str:
    nodes = _nodes(text, key)
    before = [one.value for node in nodes for one in node.value]
    changed = [changes.get(place, one) for place, one in enumerate(before)]
    wanted = [one for one in changed if one is not None]
    edits: list[Edit] = []
    done = 0
    for node in nodes:
        own = {one - done: changes[one] for one in changes if 0 <= one - done < len(node.value)}
        edits += list_edits(text, node, own)
        done += len(node.value)
    new = applied(text, edits)
    if added:
        new = applied(new, [_addition(new, key, added)])
    found = [one.value for node in _nodes(new, key) for one in node.value]
    if found != [*wanted, *added] or _rest(new, key) != _rest(text, key):
        raise ValueError(key)
    return new


def _addition(text: str, key: str, added: Sequence[str]) -> Edit:
    if nodes := _nodes(text, key):
        return append_edit(text, nodes[-1], added)
    root, new_line = yaml.compose(text, Loader=_Loader), line_end(text)
    if key == "pip":
        found = _value(root, "dependencies")
        if not isinstance(found, yaml.SequenceNode) or found.flow_style or not found.value:
            raise ValueError(key)
        return _section(text, found, added)
    if not isinstance(root, yaml.MappingNode) or root.flow_style or _value(root, key):
        raise ValueError(key)
    lead = "" if text.endswith(("\n", "\r")) else new_line
    lines = "".join(f"- {one}{new_line}" for one in added)
    return Edit(len(text), len(text), f"{lead}{key}:{new_line}{lines}")


def _section(text: str, node: yaml.SequenceNode, added: Sequence[str]) -> Edit:
    """Return what gives a conda environment without a pip section one."""
    names = [one.value for one in node.value if isinstance(one, yaml.ScalarNode)]
    has_pip = any(re.match(r"pip\b(?!-)", one) for one in names)
    new_line, indent = line_end(text), " " * node.start_mark.column
    entries = "".join(f"{new_line}{indent}  - {one}" for one in added)
    keys = (one.value[0][0] for one in node.value if isinstance(one, yaml.MappingNode))
    if key := next((one for one in keys if one.value == "pip"), None):
        # It is there, and empty.
        place = key.end_mark.index + 1
        return Edit(place, place, entries)
    return append_edit(text, node, [*([] if has_pip else ["pip"]), f"pip:{entries}"])


def _rest(text: str, key: str) -> object:
    """Return what *text* holds besides the lists of *key*."""
    document = yaml.load(text, _Loader)  # noqa: S506 (it makes texts only)
    if key != "pip":
        return {name: value for name, value in document.items() if name != key}
    entries = document.get("dependencies") or []
    kept = [one for one in entries if one != "pip" and not (isinstance(one, dict) and "pip" in one)]
    return {**document, "dependencies": kept}
