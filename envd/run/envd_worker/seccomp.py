"""A filter of system calls: what a worker has no need of, and attacks on a kernel do.

No namespace, mount, trace, key, kernel module or io_uring; no socket but of the families
that are named. Landlock asks nobody who changes a file's mode or owner, the limits of another
process, or memory that is shared by its number: without namespaces that is kept from here.
"""

import ctypes
import errno
import os
import struct

from .kernel import call, no_new_privileges

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBER, _ARCH, _FIRST_ARGUMENT, _ARGUMENT_BYTES = 0, 4, 16, 8
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000
_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000
FAMILIES = {"unix": 1, "ipv4": 2, "ipv6": 10, "netlink": 16}

# The same everywhere.
_DENIED = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_getfd": 438, "mount_setattr": 442, "open_tree_attr": 467,
}  # fmt: skip
_DENIED_ON = {
    "x86_64": {
        "ptrace": 101, "syslog": 103, "modify_ldt": 154, "pivot_root": 155, "adjtimex": 159,
        "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
        "swapon": 167, "swapoff": 168, "reboot": 169, "iopl": 172, "ioperm": 173,
        "init_module": 175, "delete_module": 176, "quotactl": 179, "clock_settime": 227,
        "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272,
        "perf_event_open": 298, "fanotify_init": 300, "open_by_handle_at": 304,
        "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60, "acct": 89,
        "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
        "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142,
        "settimeofday": 170, "adjtimex": 171, "add_key": 217, "request_key": 218,
        "keyctl": 219, "swapon": 224, "swapoff": 225, "perf_event_open": 241, "fanotify_init": 262,
        "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "bpf": 280,
        "userfaultfd": 282, "kexec_file_load": 294,
    },
}  # fmt: skip
# What reaches others of one user: owners, lists of who may, memory and queues by their numbers.
_SHARED = {
    "x86_64": {
        "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66,
        "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "chown": 92, "fchown": 93,
        "lchown": 94, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
        "lremovexattr": 198, "fremovexattr": 199, "semtimedop": 220, "fchownat": 260,
        "setxattrat": 463, "removexattrat": 466,
    },
    "aarch64": {
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16, "fchownat": 54, "fchown": 55, "msgget": 186, "msgctl": 187,
        "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191, "semtimedop": 192,
        "semop": 193, "shmget": 194, "shmctl": 195, "shmat": 196, "setxattrat": 463,
        "removexattrat": 466,
    },
}  # fmt: skip
# That of what may be refused in it: set-uid, set-gid, and to be written by everybody; any pid.
_MODE, _ANY = 0o6002, 0xFFFFFFFF
# The number, which argument, and what of it.
_SHARED_BITS = {
    "x86_64": (
        (90, 1, _MODE), (91, 1, _MODE), (268, 2, _MODE), (452, 2, _MODE), (302, 0, _ANY),
    ),
    "aarch64": ((52, 1, _MODE), (53, 2, _MODE), (452, 2, _MODE), (261, 0, _ANY)),
}  # fmt: skip
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435


def restrict(document):
    """Filter the system calls of this process, which must have one thread, for good.

    `sockets` are the families of those that it may still make; pairs are always allowed. Who
    is `among` the files and processes of its user has no namespaces to keep it from those.

    Raises:
        OSError: this kernel cannot do that, or it is another machine.
    """
    machine = os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise OSError("there is no filter of system calls for %s" % machine)
    families = [FAMILIES[name] for name in document.get("sockets", [])]
    program = b"".join(_program(machine, families, document.get("among")))
    text = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and where.
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(text))
    no_new_privileges()
    call("prctl", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(head), 0, 0)


def _program(machine, families, is_among):
    """Yield the instructions, each 8 bytes."""
    refuse = _step(_RETURN, _REFUSE | errno.EPERM)
    yield _step(_LOAD, _ARCH)
    yield _step(_EQUAL, _AUDIT_ARCH[machine], 1, 0)
    yield _step(_RETURN, _KILL)
    yield _step(_LOAD, _NUMBER)
    if machine == "x86_64":
        yield _step(_AT_LEAST, _X32, 0, 1)
        yield refuse
    denied = {*_DENIED.values(), *_DENIED_ON[machine].values()}
    for number in sorted(denied.union(_SHARED[machine].values() if is_among else ())):
        yield _step(_EQUAL, number, 0, 1)
        yield refuse
    # Its flags cannot be looked at; the C library does without it.
    yield _step(_EQUAL, _CLONE3, 0, 1)
    yield _step(_RETURN, _REFUSE | errno.ENOSYS)
    bits = ((_CLONE[machine], 0, _NEW_NAMESPACES), *(_SHARED_BITS[machine] if is_among else ()))
    for number, argument, refused in bits:
        yield _step(_EQUAL, number, 0, 4)
        yield _step(_LOAD, _FIRST_ARGUMENT + argument * _ARGUMENT_BYTES)
        yield _step(_ANY_BIT, refused, 0, 1)
        yield refuse
        yield _step(_RETURN, _ALLOW)
    yield _step(_EQUAL, _SOCKET[machine], 0, len(families) + 2)
    yield _step(_LOAD, _FIRST_ARGUMENT)
    for left in range(len(families), 0, -1):
        yield _step(_EQUAL, families[-left], left, 0)
    yield refuse
    yield _step(_RETURN, _ALLOW)


def _step(code, value, if_so=0, if_not=0):
    return struct.pack("HBBI", code, if_so, if_not, value)
