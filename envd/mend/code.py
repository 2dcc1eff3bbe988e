"""Whether the code that a model carries has all it imports, told without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.errors import ModelInvalidError
from envd.mend.versions import SINCE, UNTIL
from envd.model import Model, files

_MAX_FILES = 2_000
_LEFT_OUT = {"__pycache__"}


@dataclass(frozen=True, slots=True)
class Import:
    """A module that a file of a model's code imports, where it is read from top to bottom."""

    module: str
    file: str
    line: int


def missing(model: Model, prefix: Path) -> Iterator[Import]:
    """Yield what the code of *model* imports and neither it nor the environment *prefix* has.

    What stands in a function, an `if` or a `try` may never be run, and does not count.

    Raises:
        ModelInvalidError: the code is very large or very deep.
    """
    if model.code is None:
        return
    folder = files.inside(model.path, model.code)
    names = [name for name, _ in files.walk(model.path, folder, _MAX_FILES, _LEFT_OUT)]
    own = {name.split("/")[0].partition(".")[0] for name in names}
    # Of a module that another Python has whoever loads the model tells more.
    standard = {*sys.stdlib_module_names, *sys.builtin_module_names, *SINCE, *UNTIL}
    known = own | standard | _installed(prefix)
    seen = set()
    for name in names:
        for one in _imports(model, f"{model.code.rstrip('/')}/{name}"):
            if one.module.partition(".")[0] not in known and one.module not in seen:
                seen.add(one.module)
                yield one


def _installed(prefix: Path) -> set[str]:
    """Return the names of the modules in the environment at *prefix*."""
    return {
        entry.name.partition(".")[0]
        for site in prefix.glob("lib/python3.*/site-packages")
        for entry in site.iterdir()
        if entry.suffix in {"", ".py", ".so", ".pyc"}
    }


def _imports(model: Model, name: str) -> Iterator[Import]:
    if not name.endswith(".py"):
        return
    try:
        tree = ast.parse(files.read_text(model.path, name))
    except (SyntaxError, ValueError, RecursionError, MemoryError, ModelInvalidError):
        # It may be of another Python, or nested deeper than a parser goes: whoever loads it tells.
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (Import(one.name, name, node.lineno) for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield Import(node.module, name, node.lineno)
