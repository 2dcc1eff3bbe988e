"""What wheels have installed into a site-packages, by their RECORD files.

A record is no more than a file, which anybody may have written: what it names need not be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.utils import canonicalize_name


def records(packages_folder: Path) -> dict[str, Path]:
    """Return the record of each distribution in *packages_folder*, by its canonical name."""
    found = sorted(packages_folder.glob("*.dist-info/RECORD"))
    return {canonicalize_name(one.parent.name.split("-")[0]): one for one in found}


def files(record: Path) -> Iterator[str]:
    """Yield the names in *record*, seen from the folder that its distribution lies in.

    Raises:
        OSError: it cannot be read.
    """
    with record.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            name = line.rstrip("\n").rsplit(",", 2)[0]
            # csv.reader takes longer, and few names are quoted.
            yield name[1:-1].replace('""', '"') if name.startswith('"') else name
