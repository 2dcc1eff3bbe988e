"""Follows the code that a model imports: what was loaded, and what that imports in its text.

MLflow keeps the modules that were imported below the current folder. It does not see what is
imported inside functions that nobody called, nor what a package imports of its parents, and
nothing that lies elsewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from envd.record.code import Placed


def followed(
    loaded: Iterable[tuple[str, Path]], pickled: tuple[str, Path] | None = None
) -> list[Placed]:
    """Return the files of the modules *loaded* by name, and of those that they import of theirs.

    Of the module *pickled* the definitions are in the pickle: it is no file of the model, and
    only what they import when they run is followed.
    """
    found = dict(loaded)
    origins = [*found.items(), *filter(None, [pickled])]
    roots = list(dict.fromkeys(root for one in origins if (root := _root(*one))))
    ahead = list(origins)
    while ahead:
        name, file = ahead.pop()
        for other in _imported(name, file, is_pickled=name not in found):
            for each in _with_parents(other):
                if each not in found and (there := _file(each, roots)):
                    found[each] = there
                    ahead.append((each, there))
    return [Placed(file, target_of(name, file)) for name, file in sorted(found.items())]


def target_of(name: str, file: Path) -> str:
    """Return where *file* is the module *name* below `code/`."""
    *above, last = name.split(".")
    folder = Path(*above)
    return str(folder / last / file.name if _is_package(file) else folder / _named(last, file))


def _named(last: str, file: Path) -> str:
    # An extension is found by what follows its name, too.
    return last + file.name[len(file.name.partition(".")[0]) :]


def _is_package(file: Path) -> bool:
    return file.name.partition(".")[0] == "__init__"


def _root(name: str, file: Path) -> Path | None:
    """Return the folder in which *file* is found as the module *name*."""
    up = name.count(".") + (2 if _is_package(file) else 1)
    return file.parents[up - 1] if len(file.parents) >= up else None


def _imported(name: str, file: Path, *, is_pickled: bool) -> Iterator[str]:
    """Yield the names of what the source *file* of the module *name* may import."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    package = name.split(".") if _is_package(file) else name.split(".")[:-1]
    for node in _inside_functions(tree) if is_pickled else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            # What is imported from a package may be a module of it.
            yield from (f"{base}.{one.name}" for one in node.names)


def _inside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ast.walk(node)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file(name: str, roots: Iterable[Path]) -> Path | None:
    for root in roots if name else ():
        path = root.joinpath(*name.split("."))
        for one in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if one.is_file():
                return one
    return None


def found(module: str, roots: Iterable[Path]) -> Path | None:
    """Return the file of *module* below one of *roots*, or its folder."""
    folders = [root.joinpath(*module.split(".")) for root in roots if module]
    return _file(module, roots) or next((one for one in folders if one.is_dir()), None)
