"""Makes the detached mounts of models, for whoever may not mount: used by envd's spawner.

The spawner loads this without envd: `sys.path.append(FOLDER_OF_THIS_PACKAGE'S_PARENT)`, then
`from envd_worker import broker`. Root can call `detached` as it is. Anybody else calls
`enter` first, while the process has one thread; what is mounted outside later on still
shows inside.
"""

import os

from . import mounts
from .namespaces import leave


def enter():
    """Have a user and a mount namespace of this process's own, in which it may mount.

    Raises:
        OSError: this kernel, or who runs it, does not allow that.
    """
    leave(["user", "mount"])
    mounts.mount(None, "/", None, mounts.RECURSIVE | mounts.SLAVE)


def detached(path):
    """Return the descriptor of a read-only mount of the folder *path*, for one worker."""
    return mounts.detached(os.path.realpath(path))
