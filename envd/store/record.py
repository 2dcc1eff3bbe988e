"""What is known of one environment without looking into it: what lists and gc need."""

from __future__ import annotations

from typing import NamedTuple

from envd.lock import Artifact
from envd.store.leases import Holder


class Record(NamedTuple):
    """One published environment. Moments are the store clock's, sizes are bytes.

    A tuple: thousands are made for one list, and a dataclass takes three times as long.

    `own` counts the files that have no other name, `shares` the others, by the SHA-256 of
    the artifact they came from; a shared file is in the download cache as well. Only gc
    has to know the shares and the packages, and asks the manifest (`envd.store.parts`); None
    are packages that are not known.
    `broken` says why it cannot be used, where it cannot; `is_going` that it is removed as
    soon as nobody uses it. `details` is JSON, of what lists
    show besides: seconds, requested, as_of, notes.
    """

    id: str
    spec_key: str
    manager: str
    python: str
    created: float
    last_used: float
    uses: int
    total: int
    own: int
    models: tuple[str, ...]
    holders: tuple[Holder, ...]
    is_pinned: bool
    is_building: bool
    broken: str
    details: str
    is_going: bool = False
    shares: tuple[tuple[str, int], ...] = ()
    packages: tuple[Artifact, ...] | None = None
