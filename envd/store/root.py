"""The root as a whole: whose it is, who may write in it, and of which format it is."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from envd import durable
from envd.access import owners
from envd.errors import OUT_OF, RootUnusableError
from envd.store.layout import Layout

# Of the directory tree; what a newer envd has written is only read.
FORMAT = 2
_UNKNOWN = sys.maxsize
# A cache may be mounted there before envd first comes; `models` may well be somebody's own.
_OWN = {"cache", "environments", "held", "pythons", "scratch", "specs", "trash", "wheels"}
_README = """This directory belongs to envd: it holds the environments of models and the packages
they are made of. `envctl list` shows what is here, `envctl gc` and `envctl rm` remove it.
Do not edit.
"""


def create(layout: Layout) -> None:
    """Make the root, readable by its owner only, or see that it can be used.

    Raises:
        RootUnusableError: others own it or may write in it, or a newer envd has written it.
        OSError: it cannot be made.
    """
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    check(layout)
    check_format(layout)
    _close(layout)
    if _format(layout) < FORMAT:
        # On a full disk, what is to make room must not need any for itself.
        layout.trash.mkdir(exist_ok=True)
        (layout.root / "README").write_text(_README)
        durable.write_text(layout.root / "format", f"{FORMAT}\n")


def check(layout: Layout) -> None:
    """See that nobody else can change what is below the root, if it is there.

    Raises:
        RootUnusableError: others own it, or may write in it or put another in its place.
    """
    for path in (layout.root, layout.environments):
        _check(path, layout.root)
    if folder := owners.replaceable(layout.root):
        message = (
            f"everybody may put something else in the place of `{layout.root}`, since they may "
            f"write in `{folder}`: `chmod o-w {folder}`, or give another root with `--root`"
        )
        raise RootUnusableError(message, root=layout.root)


def _check(path: Path, root: Path) -> None:
    try:
        found = path.stat()
    except OSError:
        return
    if found.st_uid != os.geteuid():
        message = f"`{path}` belongs to user {found.st_uid}; give another root with `--root`"
        raise RootUnusableError(message, root=root)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = (
            f"others than its owner may write in `{path}`; once you trust what is there, "
            f"`chmod go-w {path}`"
        )
        raise RootUnusableError(message, root=root)


def _close(layout: Layout) -> None:
    """Let nobody else look into the root: what is below it is not closed by itself.

    Raises:
        RootUnusableError: it is not envd's own directory.
    """
    root, mode = layout.root, layout.root.stat().st_mode
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return
    strange = (one for one in root.iterdir() if one.name not in _OWN and one.is_dir())
    if not _format(layout) and any(strange):
        message = (
            f"others than its owner may look into `{root}`, which holds what is not envd's; give "
            f"a directory of its own with `--root`, or `chmod go= {root}`"
        )
        raise RootUnusableError(message, root=root)
    root.chmod(stat.S_IMODE(mode) & stat.S_IRWXU)


def check_format(layout: Layout) -> None:
    """See that what is there may be changed.

    Raises:
        RootUnusableError: a newer envd has written it.
    """
    if is_newer(layout):
        message = (
            f"`{layout.root}` was written by a newer envd (see its file `format`), and this one "
            "may only list what is there; use the newer one, or another root with `--root`"
        )
        raise RootUnusableError(message, root=layout.root)


def is_newer(layout: Layout) -> bool:
    """Whether a newer envd has written what is there, or one that cannot be told."""
    return _format(layout) > FORMAT


def _format(layout: Layout) -> int:
    try:
        number = int((layout.root / "format").read_text())
    except FileNotFoundError:
        return 0
    except ValueError:
        return _UNKNOWN
    except OSError as error:
        if error.errno in OUT_OF:
            raise
        return _UNKNOWN
    return number if number > 0 else _UNKNOWN
