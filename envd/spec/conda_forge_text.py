"""Writes into the text of a conda environment what `conda_forge` makes of it as it is read.

Only what comes to mean something else is written: comments, order, quotes and the ends of
lines stay, the comment beside an entry that goes as well. No YAML library writes it, because
each lays out anew what nobody has touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import yaml

from envd.errors import EnvdError
from envd.events import Note
from envd.spec import channels, conda_forge, match_spec
from envd.spec.channels import CONDA_FORGE, is_anaconda
from envd.spec.conda_yaml import CondaYaml
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place
from envd.spec.yaml_lists import Edit, applied, line_end, list_edits, span

_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NULLS = ("~", "null", "Null", "NULL")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Environment:
    """The mapping that is an environment, and what it says.

    The places in `content` have the number of the entry in its list instead of the line:
    two may stand in one line.
    """

    node: yaml.MappingNode
    content: CondaYaml


def rewritten(place: Place, text: str, keys: Sequence[str] = ()) -> tuple[str, tuple[Note, ...]]:
    """Return *text* with conda-forge in the place of Anaconda's own channels, and what changed.

    *keys* lead to the mapping that is the environment; without any, the whole document is.
    Where nothing changes the text is the same, and there are no notes.

    Raises:
        ModelInvalidError: there is no environment, or it is laid out so that it cannot be edited.
    """
    before = _read(place, text, keys)
    after = conda_forge.rewritten(before.content, "rewrite")
    if not after.notes:
        return text, ()
    new = applied(text, [*_channel_edits(text, before), *_package_edits(text, before, after)])
    if not _is_right(place, (text, new), keys, after):
        why = "it is laid out so that it cannot be edited; write `conda-forge` there by hand"
        raise place.invalid(why)
    return new, after.notes


def masked(text: str, environments: Sequence[Sequence[str]]) -> str:
    """Return *text* with `***` for the value of every variable in *environments*.

    Each of them is found by keys, as that of `rewritten`, which has read it. A text that
    holds none need not be YAML.
    """
    if not environments:
        return text
    root = yaml.compose(text, Loader=_Loader)
    values = [one for keys in environments for one in _values(root, keys)]
    return applied(text, [Edit(*span(text, one), "***") for one in values])


def _values(node: yaml.Node | None, keys: Sequence[str]) -> Iterator[yaml.Node]:
    for key in (*keys, "variables"):
        node = _value(node, key)
    if isinstance(node, yaml.MappingNode):
        yield from (value for _, value in node.value if value.value)
    elif node is not None:
        yield node


def _read(place: Place, text: str, keys: Sequence[str]) -> _Environment:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        why = "it is no YAML"
        raise place.invalid(why) from error
    for key in keys:
        node = _value(node, key)
    if not isinstance(node, yaml.MappingNode):
        why = "it is not a mapping"
        raise place.invalid(why)
    packages = [(i, one) for i, one in _entries(place, node, "dependencies") if _is_scalar(one)]
    content = CondaYaml(
        place,
        channels=_parsed(place, _entries(place, node, "channels"), channels.parse),
        packages=_parsed(place, packages, match_spec.parse),
    )
    return _Environment(node, content)


def _parsed(
    place: Place, entries: Iterable[tuple[int, yaml.Node]], parse: Callable[[str], _T]
) -> tuple[tuple[Place, _T], ...]:
    found = []
    for number, node in entries:
        line = place._replace(line=_line(node))
        if not _is_scalar(node):
            why = "a channel is not a text"
            raise line.invalid(why)
        try:
            found.append((place._replace(line=number), parse(node.value)))
        except ValueError as error:
            why = f"an entry of a conda environment cannot be used: {error}"
            raise line.invalid(why) from error
    return tuple(found)


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _entries(place: Place, node: yaml.Node, key: str) -> list[tuple[int, yaml.Node]]:
    value = _value(node, key)
    if isinstance(value, yaml.SequenceNode):
        return list(enumerate(value.value))
    if value is None or not value.value or value.value in _NULLS:
        return []
    why = f"`{key}` is not a list"
    raise place._replace(line=_line(value)).invalid(why)


def _channel_edits(text: str, found: _Environment) -> Iterator[Edit]:
    value = _value(found.node, "channels")
    is_flow = found.node.flow_style
    if isinstance(value, yaml.SequenceNode) and value.value:
        yield from list_edits(text, value, _channel_changes(found.content))
    elif value is not None:
        start, end = span(text, value)
        space = " " if text[start - 1] == ":" else ""
        named = '"conda-forge"' if is_flow else "conda-forge"
        if "#" in text[start:end]:
            yield Edit(start + 1, start + 1, f"{named} ")
        else:
            yield Edit(start, end, f"{space}[{named}]")
    elif is_flow:
        start = found.node.start_mark.index + 1
        comma = ", " if found.node.value else ""
        yield Edit(start, start, f'"channels": ["conda-forge"]{comma}')
    else:
        first = found.node.start_mark
        new_line = f"{line_end(text)}{' ' * first.column}"
        added = f"channels:{new_line}- conda-forge{new_line}"
        yield Edit(first.index, first.index, added)


def _channel_changes(found: CondaYaml) -> dict[int, str | None]:
    """Return what each channel that changes is called then, None where it goes."""
    listed = [one for _, one in found.channels]
    places = [i for i, one in enumerate(listed) if is_anaconda(one) or one == CONDA_FORGE]
    if not any(is_anaconda(one) for one in listed):
        return {}
    together = [
        i for n, i in takewhile(lambda one: one[1] == places[0] + one[0], enumerate(places))
    ]
    kept = next((i for i in together if listed[i] == CONDA_FORGE), places[0])
    changes: dict[int, str | None] = {i: None for i in places if i != kept}
    return changes if listed[kept] == CONDA_FORGE else changes | {kept: CONDA_FORGE.name}


def _package_edits(text: str, before: _Environment, after: CondaYaml) -> Iterator[Edit]:
    kept = {place.line: one for place, one in after.packages}
    changes = {
        place.line: _spelled(kept[place.line]) if place.line in kept else None
        for place, one in before.content.packages
        if kept.get(place.line) != one
    }
    value = _value(before.node, "dependencies")
    if isinstance(value, yaml.SequenceNode):
        yield from list_edits(text, value, changes)


def _spelled(spec: MatchSpec) -> str:
    """Spell it without a space where it can be: MLflow knows `python==3.9.18` only so.

    The source is `get_dependencies_from_conda_yaml` in mlflow/utils/environment.py.
    """
    head, _, version = spec.text.partition(" ")
    if not version or not {"[", "|"}.isdisjoint(version):
        return spec.text
    if version[0] in "=<>!~":
        return f"{head}{version}"
    return spec.text if "," in version else f"{head}={version.removesuffix('.*')}"


def _is_right(place: Place, texts: tuple[str, str], keys: Sequence[str], wanted: CondaYaml) -> bool:
    """Whether the second of *texts* means what is *wanted*, and else what the first does."""
    try:
        found = conda_forge.rewritten(_read(place, texts[1], keys).content, "rewrite")
    except EnvdError:
        return False
    is_same = _others(texts[0], keys) == _others(texts[1], keys)
    return is_same and not found.notes and _meaning(found) == _meaning(wanted)


def _meaning(found: CondaYaml) -> list[list[object]]:
    return [[one for _, one in pairs] for pairs in (found.channels, found.packages)]


def _others(text: str, keys: Sequence[str]) -> object:
    """Return what *text* holds but the channels and the conda packages."""
    document = environment = yaml.load(text, _Loader)  # noqa: S506 (it makes texts only)
    for key in keys:
        environment = environment[key]
    environment.pop("channels", None)
    entries = environment.pop("dependencies", None) or []
    return document, [one for one in entries if not isinstance(one, str)]
