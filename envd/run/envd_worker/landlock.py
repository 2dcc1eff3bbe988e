"""Landlock: which files a process may reach, and which other processes.

A process in a domain of its own cannot trace, read the memory of, or signal one outside
of it. That keeps workers that were forked from one template apart.
"""

import ctypes
import os
import stat
import struct

from .kernel import no_new_privileges, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# The version that brought each: 13 rights on files, to link across, to truncate, ioctl.
_FILES = ((1, (1 << 13) - 1), (2, 1 << 13), (3, _TRUNCATE), (5, _IOCTL_DEV))
_TCP_SINCE, _TCP = 4, 3
SCOPED_SINCE, _SCOPED = 6, 3


def abi():
    """Return the version of landlock in this kernel; 0 where there is none."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(document):
    """Restrict this process, which must have one thread, for good.

    `scoped` keeps it from signalling processes, and from abstract sockets, of others. With
    `read` or `write` those paths are all the files there are for it, and no TCP but where
    `tcp` says so.

    Raises:
        OSError: this kernel cannot do that.
    """
    version = abi()
    is_scoped, has_files = document.get("scoped"), "read" in document or "write" in document
    if version < (SCOPED_SINCE if is_scoped else 1):
        raise OSError("landlock is of version %d here, which is too old" % version)
    files = sum(rights for since, rights in _FILES if since <= version) if has_files else 0
    keeps_from_tcp = has_files and not document.get("tcp")
    tcp = _TCP if keeps_from_tcp and version >= _TCP_SINCE else 0
    attributes = struct.pack("QQQ", files, tcp, _SCOPED if is_scoped else 0)
    size = 24 if version >= SCOPED_SINCE else 16 if version >= _TCP_SINCE else 8
    ruleset = syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), size, 0)
    for path in document.get("read", []):
        _allow(ruleset, path, files & _READ)
    for path in document.get("write", []):
        _allow(ruleset, path, files)
    no_new_privileges()
    syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset, path, rights):
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        # What is not there needs no right.
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_A_FILE
        rule = struct.pack("=Qi", rights, descriptor)
        syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)
