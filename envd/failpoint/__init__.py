"""Places at which a test can make envd die or its disk fail.

`ENVD_FAILPOINT=name:kill|eio|enospc` arms one of them. Only a checkout has the module
that does it: the wheel leaves `envd.failpoint.armed` out, and there nothing happens.
"""

from __future__ import annotations

# Every step of a build, a publication, a lease, a collection and a deletion, in its order.
NAMES = (
    "build.locked",  # the environment is held; nothing of the attempt exists
    "build.begun",  # the attempt's directory is about to be filled
    "build.filled",  # the attempt is full; nothing names it
    "publish.record",  # the list of its files is about to be written
    "publish.flush",  # the files are about to be flushed
    "publish.manifest",  # the manifest is about to be written
    "publish.done",  # it is ready; its builder has not said so
    "failure.remember",  # a failure is about to be kept
    "lease.taken",  # the lease is held; whether the environment is ready is not known
    "lease.used",  # a use is about to be recorded
    "gc.chosen",  # what is to go is chosen; nothing has gone
    "gc.locked",  # nobody uses the one that goes, and nobody can begin to
    "gc.evict",  # a download is about to go to the trash
    "delete.doom",  # an environment is about to stop being ready
    "delete.rename",  # its directory is about to go to the trash
    "delete.renamed",  # it is in the trash
    "delete.tree",  # the trash is about to be emptied
    "write.begun",  # a small file is about to be written beside the old one
    "write.flush",  # it is written and about to be flushed
    "write.rename",  # it is about to take the old one's place
    "write.renamed",  # it has; the directory is not flushed
    "change.renamed",  # a file of a model has changed; those that change with it may not have
)

try:
    from envd.failpoint.armed import VARIABLES, reach
except ImportError:
    # The variables that children inherit for it.
    VARIABLES: tuple[str, ...] = ()  # type: ignore[no-redef]

    def reach(name: str) -> None:
        """Do nothing at the failpoint *name*."""


__all__ = ["NAMES", "VARIABLES", "reach"]
