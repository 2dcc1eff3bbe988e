"""What conda has installed into a prefix, by its own records.

What pip installs afterwards may write there as well: a record is no more than a file.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from envd.spec.conda_package import CondaPackage


def files(prefix: Path, package: CondaPackage) -> list[str]:
    """Return the files of *package*, below *prefix*: none where its record is none."""
    try:
        record = json.loads((prefix / "conda-meta" / f"{package.stem}.json").read_bytes())
        found = record["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [one for one in found if _is_below(one)] if isinstance(found, list) else []


def _is_below(name: object) -> bool:
    return (
        isinstance(name, str)
        and not name.startswith("/")
        and (".." not in PurePosixPath(name).parts)
    )
