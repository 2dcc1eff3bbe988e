"""Edits the lists in a text of YAML, and nothing else in it.

An entry is written anew or goes. Whatever stands beside or between entries stays: comments,
those beside an entry that goes as well, quotes, and the layout of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import yaml

_TO_LINE_END = re.compile(r"[^\r\n]*(?:\r\n?|\n)?")
_COMMENT = re.compile(r"#[^\r\n]*")
_COMMENT_OR_OTHER = re.compile(r"#[^\r\n]*|[^#]+")
# No YAML holds it.
_GONE = "\0"
_IN_FLOW = frozenset(",[]{}")


class Edit(NamedTuple):
    """What takes the place of a part of a text."""

    start: int
    end: int
    text: str


def list_edits(
    text: str, node: yaml.SequenceNode, changes: Mapping[int, str | None]
) -> Iterator[Edit]:
    """Yield what makes of each entry, by its number, what *changes* say; None removes it."""
    for index, new in changes.items():
        if new is not None:
            entry = node.value[index]
            scalar = _scalar(new, entry.style, is_flow=node.flow_style)
            comment = "".join(f"  {one}" for one in _comment_of_block(text, entry))
            yield Edit(*span(text, entry), scalar + comment)
    gone = [index for index, new in changes.items() if new is None]
    if node.flow_style:
        yield from (_removed_from_flow(text, node, one) for one in _runs(gone))
    else:
        yield from (_removed_line(text, node, index) for index in gone)


def append_edit(text: str, node: yaml.SequenceNode, new: Sequence[str]) -> Edit:
    """Return what puts the texts *new* at the end of the list *node*.

    An empty one is taken to be `[]`: YAML has no other.
    """
    if node.flow_style or not node.value:
        written = ", ".join(_scalar(one, None, is_flow=True) for one in new)
        if not node.value:
            return Edit(node.start_mark.index + 1, node.start_mark.index + 1, written)
        place = span(text, node.value[-1])[1]
        return Edit(place, place, f", {written}")
    indent, end = " " * node.start_mark.column, span(text, node.value[-1])[1]
    found = _TO_LINE_END.match(text, end)
    place = found.end() if found else end
    new_line = line_end(text)
    lead = "" if text[:place].endswith(("\n", "\r")) else new_line
    lines = new_line.join(f"{indent}- {_scalar(one, None, is_flow=False)}" for one in new)
    return Edit(place, place, f"{lead}{lines}{'' if lead else new_line}")


def _scalar(text: str, style: str | None, *, is_flow: bool) -> str:
    """Write *text*, one line, with the quotes it had, or others where it needs them."""
    must_quote = is_flow and not _IN_FLOW.isdisjoint(text)
    if not must_quote and style not in {"'", '"'}:
        return text
    is_plain = '"' not in text and "\\" not in text
    if (style == "'" and "'" not in text) or not is_plain:
        doubled = text.replace("'", "''")
        return f"'{doubled}'"
    return f'"{text}"'


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of *numbers*."""
    found = sorted(numbers)
    for _, run in groupby(enumerate(found), key=lambda one: one[1] - one[0]):
        one, *others = (number for _, number in run)
        yield one, others[-1] if others else one


def _removed_from_flow(text: str, node: yaml.SequenceNode, run: tuple[int, int]) -> Edit:
    """Remove entries with the commas that they need no more; comments stay."""
    first, last = run
    spans = [span(text, one) for one in node.value]
    start = spans[first - 1][1] if first else node.start_mark.index + 1
    is_last = last + 1 == len(spans)
    end = node.end_mark.index - 1 if is_last else spans[last + 1][0]
    gone = spans[first : last + 1]
    if not any("#" in text[one:other] for one, other in _between(start, gone, end)):
        if first:
            return Edit(start, gone[-1][1], "")
        return Edit(gone[0][0], end, "")
    has_next = not is_last or "," in _COMMENT.sub("", text[gone[-1][1] : end])
    marked = _marked(text, start, gone, end, keeps_comma=bool(first) and has_next)
    return Edit(start, end, _tidied(marked))


def _between(start: int, gone: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """Yield where there is something else than what is *gone*."""
    for one, other in gone:
        yield start, one
        start = other
    yield start, end


def _marked(
    text: str, start: int, gone: Sequence[tuple[int, int]], end: int, *, keeps_comma: bool
) -> str:
    """Return a part of *text* with a mark for all that goes: entries, and commas but for one."""
    parts = []
    for number, (one, other) in enumerate(_between(start, gone, end)):
        if number:
            parts.append(_GONE)
        for found in _COMMENT_OR_OTHER.finditer(text, one, other):
            part = found[0]
            if not part.startswith("#") and "," in part:
                kept = part.find(",") + 1 if keeps_comma else 0
                part = part[:kept] + part[kept:].replace(",", _GONE)
                keeps_comma = False
            parts.append(part)
    return "".join(parts)


def _tidied(marked: str) -> str:
    """Return what is left without the marks, and without lines of which nothing is left."""
    lines = marked.splitlines(keepends=True)
    if marked.endswith(("\n", "\r")):
        lines.append("")
    tidy = []
    for number, line in enumerate(lines):
        left = line.replace(_GONE, "").strip()
        is_first, is_last = number == 0, number + 1 == len(lines)
        indent = line[: len(line) - len(line.lstrip(" \t"))]
        if _GONE not in line:
            tidy.append(line)
        elif is_last:
            tidy.append(f"{indent}{left}{' ' if left else ''}")
        elif is_first:
            rest = line.replace(_GONE, "").rstrip()
            tidy.append(f"{' ' if rest.startswith('#') else ''}{rest}{_end_of(line)}")
        elif left:
            tidy.append(f"{indent}{left}{_end_of(line)}")
    return "".join(tidy)


def _end_of(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :]


def _removed_line(text: str, node: yaml.SequenceNode, index: int) -> Edit:
    """Remove an entry from its `-` to the end of its last line; comments there stay."""
    start, end = span(text, node.value[index])
    column = node.start_mark.column
    first = node.start_mark.index - column
    if index:
        above = span(text, node.value[index - 1])[1]
        dashes = re.finditer(rf"^ {{{column}}}-\s", text[above:start], re.MULTILINE)
        first = max((above + one.start() for one in dashes), default=start)
    found = _TO_LINE_END.match(text, end)
    stop = found.end() if found else end
    comments = [
        *_COMMENT.findall(text, first, start),
        *_comment_of_block(text, node.value[index]),
        *_COMMENT.findall(text, end, stop),
    ]
    lines = [f"{' ' * column}{one.rstrip()}{line_end(text)}" for one in comments]
    return Edit(first, stop, "".join(lines))


def _comment_of_block(text: str, node: yaml.Node) -> list[str]:
    """Return the comment beside the `>` or `|` that begins a block of text, if there is one."""
    if not isinstance(node, yaml.ScalarNode) or node.style not in {"|", ">"}:
        return []
    found = _TO_LINE_END.match(text, node.start_mark.index)
    return _COMMENT.findall(found[0]) if found else []


def span(text: str, node: yaml.Node) -> tuple[int, int]:
    """Return where *node* begins and ends, without the line ends after a block of text."""
    start, end = node.start_mark.index, node.end_mark.index
    return start, start + len(text[start:end].rstrip())


def applied(text: str, edits: Iterable[Edit]) -> str:
    """Return *text* after *edits*, none of which begins within another."""
    parts, done = [], 0
    for edit in sorted(edits):
        parts += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join([*parts, text[done:]])


def line_end(text: str) -> str:
    """Return how the lines of *text* end."""
    return "\r\n" if "\r\n" in text else "\n"
