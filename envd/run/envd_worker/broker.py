"""Makes the detached mounts of models, for a daemon, which may not mount.

Root can do so as it is. Anybody else needs namespaces of their own for it; what is mounted
outside later on still shows inside.
"""

import array
import json
import os
import socket

from . import kernel, mounts, namespaces
from .namespaces import leave

_MAX_PATH = 1 << 16


def main(descriptor, text="null"):
    """Answer each path that comes over the SOCK_SEQPACKET socket *descriptor* with its mount.

    An answer without one says why. *text* is the uid and the gid, in JSON, to whom belongs
    in there what is root's, if it is not as it is.
    """
    kernel.die_with(kernel.parent_in_proc())
    connection, user = socket.socket(fileno=int(descriptor)), json.loads(text)
    if namespaces.HOST_UID:
        enter()
    owners = namespaces.owners(*user) if user else None
    while True:
        path = connection.recv(_MAX_PATH)
        if not path:
            return
        try:
            mount = detached(path, owners)
        except OSError as error:
            connection.send(str(error).encode())
            continue
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [mount]).tobytes())
        connection.sendmsg([b"."], [rights])
        os.close(mount)


def enter():
    """Have a user and a mount namespace of this process's own, in which it may mount.

    Raises:
        OSError: this kernel, or who runs it, does not allow that.
    """
    leave(["user", "mount"])
    mounts.mount(None, "/", None, mounts.RECURSIVE | mounts.SLAVE)


def detached(path, owners=None):
    """Return the descriptor of a read-only mount of the folder *path*, for one worker.

    *owners* is as in `mounts.detached`, where the file system can do that.
    """
    return mounts.owned(os.path.realpath(path), mounts.RDONLY, owners)
