"""What a worker or a template lives inside of: a root of its own, and no other process.

Built before anything is imported that starts a thread, in a few milliseconds.
"""

import os

from . import kernel, limits, mounts, namespaces

# Where the new root is put together; what is below it comes in by its descriptor.
_BASE = "/tmp"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SMALL, _SHM = 16 << 20, 64 << 20
_ANYBODY = "1777"


def go_inside(document, kept=()):
    """Go on in a child, inside of what *document* says; the parent keeps *kept* and waits.

    `namespaces` are those it leaves. With a mount namespace, all it has are the paths
    `read` and `owned`, to read, `write`, a /proc and /dev of its own, with the devices
    `devices`, an empty folder of `size` bytes, at /tmp or at `scratch`, and the empty folders
    `places`, on which workers mount.

    Root goes on as the `user`, a uid and a gid, where that is given; to it belongs then
    what is root's of the paths `owned`.
    """
    names, user = document.get("namespaces", []), document.get("user")
    if names:
        parent = kernel.parent_in_proc()
        owners = namespaces.owners(*user) if user else None
        # Root needs no namespace of users to mount, and is not to be root in one.
        namespaces.leave([one for one in names if one != "user"] if user else names)
        # Who changes who it is must say it again.
        kernel.die_with(parent)
    kernel.go_on_in_child(kept)
    if "mount" in names:
        mounts.alone()
        _change_root(document, owners)
    if names:
        _give_up(user, owners)


def _give_up(user, owners):
    if user:
        os.close(owners)
        limits.become(*user)
    limits.drop_capabilities()


def _change_root(document, owners):
    """Make a root of the paths of *document*, and of the empty folders it names."""
    read, places = document.get("read", []), document.get("places", [])
    owned, written = document.get("owned", []), document.get("write", [])
    every = [*read, *owned, *written]
    if not all(os.path.isabs(one) for one in [*every, *places]):
        raise ValueError("a path of a root is absolute")
    links = [(os.readlink(one), one) for one in every if os.path.islink(one)]
    # Before anything is hidden below what is mounted here; what lies in another comes later.
    trees = [
        mounts.Tree(one, 0 if one in written else mounts.RDONLY, owners if one in owned else None)
        for one in sorted(set(every))
        if os.path.exists(one) and not os.path.islink(one)
    ]
    mounts.tmpfs(_BASE, _SMALL, "0755")
    scratch, size = document.get("scratch", "/tmp"), document.get("size", _SHM)
    for one in ("/proc", "/dev/shm", "/tmp", scratch, *places):
        os.makedirs(_BASE + one, exist_ok=True)
    mounts.tmpfs(_BASE + scratch, size, _ANYBODY)
    # joblib looks whether it may write there when it is imported.
    mounts.tmpfs(_BASE + "/dev/shm", size, _ANYBODY)
    mounts.mount("proc", _BASE + "/proc", "proc", mounts.NOSUID | mounts.NODEV | mounts.NOEXEC)
    for one in ["/dev/" + name for name in _DEVICES] + document.get("devices", []):
        if os.path.exists(one):
            mounts.make(_BASE + one, False)
            mounts.mount(one, _BASE + one, None, mounts.BIND)
    for one in trees:
        one.attach(_BASE)
    for target, path in links:
        _link(target, _BASE + path)
    mounts.change_root(_BASE)
    flags = mounts.REMOUNT | mounts.BIND | mounts.RDONLY | mounts.NOSUID | mounts.NODEV
    mounts.mount(None, "/", None, flags)


def _link(target, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.lexists(path):
        os.symlink(target, path)
