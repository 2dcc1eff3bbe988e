"""Whether the code that a model carries has all it imports, told without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.errors import ModelInvalidError
from envd.model import Model, files

_MAX_FILES = 2_000
_LEFT_OUT = {"__pycache__"}


@dataclass(frozen=True, slots=True)
class Import:
    """A module that a file of a model's code imports, and whether nothing runs without it.

    What stands in a function, or in a `try`, may be left out by whoever wrote it.
    """

    module: str
    file: str
    line: int
    is_certain: bool


def missing(model: Model, prefix: Path) -> Iterator[Import]:
    """Yield what the code of *model* imports and neither it nor the environment *prefix* has.

    Raises:
        ModelInvalidError: the code is very large or very deep.
    """
    if model.code is None:
        return
    folder = files.inside(model.path, model.code)
    own = {name.split("/")[0].removesuffix(".py") for name, _ in files.walk(
        model.path, folder, _MAX_FILES, _LEFT_OUT)}  # fmt: skip
    known = own | _installed(prefix) | sys.stdlib_module_names | set(sys.builtin_module_names)
    seen = set()
    for name, _ in files.walk(model.path, folder, _MAX_FILES, _LEFT_OUT):
        for one in _imports(model, f"{model.code.rstrip('/')}/{name}"):
            if one.module.partition(".")[0] not in known and one.module not in seen:
                seen.add(one.module)
                yield one


def _installed(prefix: Path) -> set[str]:
    """Return the names of the modules in the environment at *prefix*."""
    return {
        entry.name.split(".")[0]
        for site in prefix.glob("lib/python3.*/site-packages")
        for entry in site.iterdir()
        if entry.suffix in {"", ".py", ".so", ".pyc"}
    }


def _imports(model: Model, name: str) -> Iterator[Import]:
    if not name.endswith(".py"):
        return
    try:
        tree = ast.parse(files.read_text(model.path, name))
    except (SyntaxError, ValueError, RecursionError, ModelInvalidError):
        # It may be of another Python; whoever loads it tells.
        return
    yield from _in(tree.body, name, is_certain=True)


def _in(body: list[ast.stmt], name: str, *, is_certain: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for one in node.names:
                yield Import(one.name, name, node.lineno, is_certain)
        elif isinstance(node, ast.ImportFrom):
            if node.module and not node.level:
                yield Import(node.module, name, node.lineno, is_certain)
        elif not _is_for_types(node):
            inner = is_certain and isinstance(node, ast.ClassDef)
            for _, value in ast.iter_fields(node):
                statements = value if isinstance(value, list) else []
                yield from _in(
                    [one for one in statements if isinstance(one, ast.stmt)],
                    name,
                    is_certain=inner,
                )


def _is_for_types(node: ast.stmt) -> bool:
    """Whether it is `if TYPE_CHECKING:`, of which nothing is ever run."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
