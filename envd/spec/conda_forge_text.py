"""Writes into the text of a conda environment what `conda_forge` makes of it as it is read.

Only what comes to mean something else is written: comments, order, quotes and the ends of
lines stay. No YAML library writes it, because each lays out anew what nobody has touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, TypeVar

import yaml

from envd.errors import EnvdError
from envd.events import Note
from envd.spec import channels, conda_forge, match_spec
from envd.spec.channels import CONDA_FORGE, is_anaconda
from envd.spec.conda_yaml import CondaYaml
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place

_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_TO_LINE_END = re.compile(r"[^\r\n]*(?:\r\n?|\n)?")
_IN_FLOW = frozenset(",[]{}")
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


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


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
    new = _applied(text, [*_channel_edits(text, before), *_package_edits(text, before, after)])
    if not _is_right(place, (text, new), keys, after):
        why = "it is laid out so that it cannot be edited; write `conda-forge` there by hand"
        raise place.invalid(why)
    return new, after.notes


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


def _channel_edits(text: str, found: _Environment) -> Iterator[_Edit]:
    value = _value(found.node, "channels")
    is_flow = found.node.flow_style
    if isinstance(value, yaml.SequenceNode) and value.value:
        yield from _list_edits(text, value, _channel_changes(found.content))
    elif value is not None:
        start, end = _span(text, value)
        space = " " if text[start - 1] == ":" else ""
        yield _Edit(start, end, space + ('["conda-forge"]' if is_flow else "[conda-forge]"))
    elif is_flow:
        start = found.node.start_mark.index + 1
        comma = ", " if found.node.value else ""
        yield _Edit(start, start, f'"channels": ["conda-forge"]{comma}')
    else:
        first = found.node.start_mark
        line_end = f"{_line_end(text)}{' ' * first.column}"
        added = f"channels:{line_end}- conda-forge{line_end}"
        yield _Edit(first.index, first.index, added)


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


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


def _package_edits(text: str, before: _Environment, after: CondaYaml) -> Iterator[_Edit]:
    kept = {place.line: one for place, one in after.packages}
    changes = {
        place.line: _spelled(kept[place.line]) if place.line in kept else None
        for place, one in before.content.packages
        if kept.get(place.line) != one
    }
    value = _value(before.node, "dependencies")
    if isinstance(value, yaml.SequenceNode):
        yield from _list_edits(text, value, changes)


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


def _list_edits(
    text: str, node: yaml.SequenceNode, changes: Mapping[int, str | None]
) -> Iterator[_Edit]:
    stays = (i for i in range(len(node.value)) if changes.get(i, "") is not None)
    first_kept = next(stays, len(node.value))
    for index, new in changes.items():
        entry = node.value[index]
        if new is not None:
            yield _Edit(*_span(text, entry), _scalar(new, entry.style, is_flow=node.flow_style))
        elif node.flow_style:
            yield _removed_from_flow(text, node, index, is_first=index < first_kept)
        else:
            yield _removed_line(text, node, index)


def _scalar(text: str, style: str | None, *, is_flow: bool) -> str:
    """Write *text*, which holds no double quote and no backslash, with the quotes it had."""
    if style == "'" and "'" not in text:
        return f"'{text}'"
    must_quote = is_flow and not _IN_FLOW.isdisjoint(text)
    return f'"{text}"' if must_quote or style in {"'", '"'} else text


def _removed_from_flow(text: str, node: yaml.SequenceNode, index: int, *, is_first: bool) -> _Edit:
    """Remove an entry with the comma after it, or before it where others stay before it."""
    start, end = _span(text, node.value[index])
    if not is_first:
        return _Edit(_span(text, node.value[index - 1])[1], end, "")
    is_last = index + 1 == len(node.value)
    rest = node.end_mark.index - 1 if is_last else node.value[index + 1].start_mark.index
    return _Edit(start, rest, "")


def _removed_line(text: str, node: yaml.SequenceNode, index: int) -> _Edit:
    """Remove an entry from its `-` to the end of its last line, with the comment there."""
    start, end = _span(text, node.value[index])
    column = node.start_mark.column
    first = node.start_mark.index - column
    if index:
        above = _span(text, node.value[index - 1])[1]
        dashes = re.finditer(rf"^ {{{column}}}-\s", text[above:start], re.MULTILINE)
        first = max((above + one.start() for one in dashes), default=start)
    found = _TO_LINE_END.match(text, end)
    return _Edit(first, found.end() if found else end, "")


def _span(text: str, node: yaml.Node) -> tuple[int, int]:
    """Return where *node* begins and ends, without the line ends after a block of text."""
    start, end = node.start_mark.index, node.end_mark.index
    return start, start + len(text[start:end].rstrip())


def _applied(text: str, edits: Iterable[_Edit]) -> str:
    parts, done = [], 0
    for edit in sorted(edits):
        parts += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join([*parts, text[done:]])


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
