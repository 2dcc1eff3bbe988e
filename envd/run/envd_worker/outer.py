"""What a template lives inside of: a root of its own to read, no network, no other process.

Built before anything is imported that starts a thread, in a few milliseconds.
"""

import os

from . import kernel, mounts, namespaces
from .limits import drop_capabilities

# Where the new root is put together; what is below it comes in by its descriptor.
_BASE = "/tmp"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SMALL, _SHM = 16 << 20, 64 << 20


def go_inside(document, kept=()):
    """Go on in a child, inside of what *document* says; the parent keeps *kept* and waits.

    `namespaces` are those it leaves. With a mount namespace, all it has are the paths
    `read`, a /proc, /dev and /tmp of its own, and the empty folders `places`, on which
    workers mount.
    """
    names = document.get("namespaces", [])
    if names:
        namespaces.leave(names)
    kernel.go_on_in_child(kept)
    if "mount" in names:
        mounts.alone()
        _change_root(document.get("read", []), document.get("places", []))
    if names:
        drop_capabilities()


def _change_root(paths, places):
    """Make a root of *paths*, to be read only, and of the empty folders *places*."""
    if not all(os.path.isabs(one) for one in [*paths, *places]):
        raise ValueError("a path of a root is absolute")
    links = [(os.readlink(one), one) for one in paths if os.path.islink(one)]
    # Before anything is hidden below what is mounted here.
    trees = [
        (mounts.detached(one, recursive=True), os.path.isdir(one), one)
        for one in paths
        if os.path.exists(one) and not os.path.islink(one)
    ]
    mounts.tmpfs(_BASE, _SMALL, "0755")
    for one in ("/proc", "/dev/shm", "/tmp", *places):
        os.makedirs(_BASE + one, exist_ok=True)
    mounts.tmpfs(_BASE + "/tmp", _SHM)
    # joblib looks whether it may write there when it is imported.
    mounts.tmpfs(_BASE + "/dev/shm", _SHM)
    mounts.mount("proc", _BASE + "/proc", "proc", mounts.NOSUID | mounts.NODEV | mounts.NOEXEC)
    for one in _DEVICES:
        _make(_BASE + "/dev/" + one, False)
        mounts.mount("/dev/" + one, _BASE + "/dev/" + one, None, mounts.BIND)
    for descriptor, is_folder, path in trees:
        _make(_BASE + path, is_folder)
        mounts.attach(descriptor, _BASE + path)
        os.close(descriptor)
    for target, path in links:
        os.makedirs(os.path.dirname(_BASE + path), exist_ok=True)
        os.symlink(target, _BASE + path)
    mounts.change_root(_BASE)
    flags = mounts.REMOUNT | mounts.BIND | mounts.RDONLY | mounts.NOSUID | mounts.NODEV
    mounts.mount(None, "/", None, flags)


def _make(path, is_folder):
    """Make an empty folder or file to mount on."""
    if is_folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab"):
            pass
