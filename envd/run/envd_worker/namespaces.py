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


def owners(uid, gid):
    """Return the descriptor of a user namespace in which root is *uid* and *gid* outside.

    It is there for `mounts.detached`; only root can make it.
    """
    ready, is_ready = os.pipe()
    over, is_over = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.call("unshare", FLAGS["user"])
            os.write(is_ready, b".")
            os.close(is_over)
            os.read(over, 1)
        finally:
            os._exit(0)
    os.close(is_ready)
    try:
        os.read(ready, 1)
        _write("/proc/%d/uid_map" % pid, "0 %d 1" % uid)
        _write("/proc/%d/gid_map" % pid, "0 %d 1" % gid)
        return os.open("/proc/%d/ns/user" % pid, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for one in (ready, over, is_over):
            os.close(one)
        os.waitpid(pid, 0)


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)
