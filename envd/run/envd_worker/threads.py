"""Whether this process can be forked: a fork has one thread, whatever there were before."""

import os
import sys

# pyarrow's allocator; it does without after a fork.
_HARMLESS = {"jemalloc_bg_thd"}


def why_not_forked():
    """Return why workers cannot be forked from this process, or None.

    Looked at after a first fork, at which OpenBLAS ends the threads it started.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    threading = sys.modules.get("threading")
    if threading and threading.active_count() > 1:
        names = [one.name for one in threading.enumerate()[1:]]
        return "its imports start threads: " + ", ".join(names)
    others = _other_threads()
    if others:
        return "its imports start threads of the system's: " + ", ".join(others)
    if any(one.startswith("/dev/nvidia") for one in _open_files()):
        return "its imports initialize CUDA"
    return None


def count_threads():
    """Return how many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def _other_threads():
    others = set(os.listdir("/proc/self/task")) - {os.readlink("/proc/self")}
    return sorted({_name(one) for one in others} - _HARMLESS - {""})


def _name(thread):
    try:
        with open("/proc/self/task/%s/comm" % thread) as file:
            return file.read().strip()
    except OSError:
        # It has ended meanwhile.
        return ""


def _open_files():
    return [_target("/proc/self/fd/" + one) for one in os.listdir("/proc/self/fd")]


def _target(link):
    try:
        return os.readlink(link)
    except OSError:
        # The descriptor that listed it.
        return ""
