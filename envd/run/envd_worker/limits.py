"""What a process may use, and what it may do as root."""

import ctypes
import errno
import os
import resource
import struct

from .kernel import call, die_with, no_new_privileges, parent_in_proc

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64


def limit(limits):
    """Set the resource limits by name (`nofile`, `core`...), as far as they may be raised."""
    for name, value in limits.items():
        which = getattr(resource, "RLIMIT_" + name.upper())
        _, hard = resource.getrlimit(which)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (most, most))


def drop_capabilities():
    """Give up every capability, and every way to one."""
    no_new_privileges()
    for capability in range(_MOST_CAPABILITIES):
        try:
            call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as error:
            # There are no more, or none that could be dropped.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            break
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    call("capset", ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def become(uid, gid):
    """Be another user, and member of no other group; who was root has no capability left."""
    parent = parent_in_proc()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Or what is its own in /proc would still be root's.
    call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    # Who changes who it is must say it again.
    die_with(parent)


def join_cgroup(descriptor):
    """Join the cgroup whose open `cgroup.procs` this is, which may lie out of sight."""
    os.write(descriptor, b"0")
