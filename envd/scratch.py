"""Directories to work in for a while, which are swept where whoever made them was killed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envd import process


@contextmanager
def scratch(root: Path, what: str) -> Iterator[Path]:
    """Yield a directory below *root* for *what* this process does, and remove it then."""
    above = root / "scratch"
    above.mkdir(parents=True, exist_ok=True)
    # Its name says whose it is: what the dead have left is swept.
    prefix = f"{process.stamp()}.{what}."
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=above, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
