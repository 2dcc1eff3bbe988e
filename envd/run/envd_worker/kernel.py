"""Calls of the kernel that Python has no function for, and how processes here hang together."""

import ctypes
import os
import signal

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38


def call(function, *arguments):
    """Call the C function of that name.

    Raises:
        OSError: it said no.
    """
    given = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    result = getattr(_LIBC, function)(*given)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (function, os.strerror(number)))
    return result


def syscall(number, *arguments):
    """Make the system call *number*, which the C library may not know."""
    return call("syscall", number, *arguments)


def no_new_privileges():
    """Let no program this process runs have more rights than it has."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with(parent):
    """Let this process be killed when its parent ends, whose pid in /proc is *parent*.

    The kernel forgets that when a process changes who it is: say it again then.
    """
    call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent_in_proc() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)


def adopt_orphans():
    """Let this process, and not its parent, have the orphans among its descendants."""
    call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children():
    """Return the pids of the children of this process, adopted ones included."""
    with open("/proc/self/task/%s/children" % pid_in_proc()) as file:
        return [int(pid) for pid in file.read().split()]


def pid_in_proc():
    """Return the pid of this process as the mounted /proc numbers it."""
    return os.readlink("/proc/self")


def parent_in_proc():
    """Return the pid of its parent likewise; in a PID namespace of its own, getppid is 0."""
    with open("/proc/self/stat") as file:
        return file.read().rpartition(")")[2].split()[1]


def go_on_in_child(kept=()):
    """Fork, and return in the child, which ends when its parent does.

    The parent closes all but the descriptors *kept*, waits, and ends as the child has.
    """
    # Not later: the child may mount another /proc over the one of both.
    me, descriptors = pid_in_proc(), [int(one) for one in os.listdir("/proc/self/fd")]
    pid = os.fork()
    if pid == 0:
        die_with(me)
        return
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for one in descriptors:
            if one > 2 and one not in kept:
                _close(one)
        _end_as(os.waitpid(pid, 0)[1])
    finally:
        # Whatever happens, it is not this process that goes on.
        os._exit(1)


def _close(descriptor):
    try:
        os.close(descriptor)
    except OSError:
        # It was the one that listed them.
        pass


def _end_as(status):
    """End this process as one has that left *status* to `waitpid`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)
