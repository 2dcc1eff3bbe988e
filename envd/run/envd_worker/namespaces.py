"""Namespaces: what a process can see at all."""

import os

from . import kernel

FLAGS = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
}

# Who this process is outside of every namespace it makes.
HOST_UID = os.getuid()
_INSIDE = 1000


def leave(names):
    """Leave the namespaces *names* for new ones; a PID namespace is its children's only.

    The process must have one thread. Inside it is never root: a process that dropped its
    capabilities could not map uid 0 again.
    """
    uid, gid, flags = os.getuid(), os.getgid(), 0
    for name in names:
        flags |= FLAGS[name]
    kernel.call("unshare", flags)
    if "user" in names:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", "%d %d 1" % (uid or _INSIDE, uid))
        _write("/proc/self/gid_map", "%d %d 1" % (gid or _INSIDE, gid))


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)
