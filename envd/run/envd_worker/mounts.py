"""Mounts, among them detached ones, which are handed over as descriptors.

A model's folder reaches a worker as a mount that is attached nowhere: `..` ends at its
root. A plain descriptor of a folder would be a way out of every namespace.
"""

import ctypes
import os
import struct

from .kernel import call, syscall

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
REMOUNT, BIND, RECURSIVE, PRIVATE, SLAVE = 32, 4096, 16384, 1 << 18, 1 << 19

# From 424 on a system call has one number on every machine.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _AT_RECURSIVE = 1, 0x1000, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_IDMAP = 1 << 20
_AT_FDCWD = -100
_FEWEST_FILES = 64
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def mount(source, target, kind, flags, data=None):
    """Mount a file system, or change a mount."""
    call("mount", _bytes(source), _bytes(target), _bytes(kind), flags, _bytes(data))


def tmpfs(target, size, mode="0700"):
    """Mount an empty file system of *size* bytes in memory.

    Empty files take memory, too, about a KiB each, which the size does not count.
    """
    options = "size=%d,nr_inodes=%d,mode=%s" % (size, max(size // 1024, _FEWEST_FILES), mode)
    mount("tmpfs", target, "tmpfs", NOSUID | NODEV, options)


def proc():
    """Mount /proc anew, for the PID namespace of this process."""
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)


def alone():
    """Let no mount of this namespace show in another one, nor those of another one here."""
    mount(None, "/", None, RECURSIVE | PRIVATE)


def detached(path, recursive=False, flags=RDONLY, owners=None):
    """Return the descriptor of a mount of *path* that is attached nowhere, read-only by default.

    What belongs to root there belongs in it to whom the user namespace, whose descriptor
    *owners* is, maps root to; not every file system can do that.
    """
    depth = _AT_RECURSIVE if recursive else 0
    cloned = _OPEN_TREE_CLONE | os.O_CLOEXEC | depth
    descriptor = syscall(_OPEN_TREE, _AT_FDCWD, _bytes(path), cloned)
    mapped = 0 if owners is None else _IDMAP
    # To set, to clear, the propagation, a user namespace.
    attributes = struct.pack("QQQQ", flags | NOSUID | NODEV | mapped, 0, 0, owners or 0)
    try:
        syscall(
            *(_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH | depth),
            *(ctypes.c_char_p(attributes), len(attributes)),
        )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Tree:
    """All that is mounted at and below a path, to be attached at the same path elsewhere."""

    def __init__(self, path, flags=RDONLY, owners=None):
        """Take it as it is now; *flags* and *owners* are as those of `detached`."""
        self.path, self._is_folder = path, os.path.isdir(path)
        self._descriptor = owned(path, flags, owners)

    def attach(self, base=""):
        """Attach it at its path below *base*."""
        make(base + self.path, self._is_folder)
        attach(self._descriptor, base + self.path)
        os.close(self._descriptor)


def owned(path, flags, owners):
    """Return as `detached` a mount with *owners*, where there are and that can be done."""
    if owners is not None:
        try:
            return detached(path, False, flags, owners)
        except OSError:
            # Then it is read as anybody may.
            pass
    return detached(path, True, flags)


def make(path, is_folder):
    """Make an empty folder or file to mount on, if there is none."""
    if os.path.exists(path):
        return
    if is_folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab"):
            pass


def attach(descriptor, target):
    """Attach a detached mount at *target*; its descriptor is of no use any more."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    syscall(_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, _bytes(target), flags)


def change_root(folder):
    """Make *folder*, a mount, the root, and detach all that was mounted before."""
    os.chdir(folder)
    syscall(_PIVOT_ROOT[os.uname().machine], b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _bytes(text):
    return None if text is None else os.fsencode(text)
