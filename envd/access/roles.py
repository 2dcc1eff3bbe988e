"""What callers may do, each role all that the one before it may."""

from __future__ import annotations

import enum


class Role(enum.Enum):
    """What a caller may do: ask models, have environments built, administer the machine."""

    PREDICT = "predict"
    BUILD = "build"
    ADMIN = "admin"

    def covers(self, wanted: Role) -> bool:
        """Whether whoever has this role may do what takes the role *wanted*."""
        return _ORDER[self] >= _ORDER[wanted]


_ORDER = {role: place for place, role in enumerate(Role)}
NAMES = tuple(role.value for role in Role)
