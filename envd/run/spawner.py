"""Starts, reaps and ends every process of a daemon: standard library only, one thread.

The daemon never forks: a fork in a process that runs gRPC stops its loop for
milliseconds and may hang. It starts this program before it imports grpc, and asks it over
a SOCK_SEQPACKET pair, one JSON object a message:

    {"start": id, "argv", "env", "cwd", "log", "given": n}   descriptors: n for the child,
        whose numbers replace `{0}`, `{1}`... in argv; the rest stays open here until the
        child has ended (its lease)
    {"kill": id, "signal": number}                            the child's process group
    {"ping": id}                                              answered as `{"pong": id}`

and is told `{"started": id, "pid"}`, `{"failed": id, "error", "errno"}` and
`{"exited": id, "status"}`. What a child leaves when it ends, in whatever session, ends too;
and when the daemon ends, however it ends, so does everything that was started here.
"""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

_MAX_MESSAGE = 1 << 20
_MAX_DESCRIPTORS = 16
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

LIBC = ctypes.CDLL(None)


class Child:
    """A process, and the descriptors kept open for it."""

    def __init__(self, number, process, kept):
        """Remember a child that has just been started."""
        self.number, self.process, self.kept = number, process, kept

    def signal(self, number):
        """Send a signal to its process group."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


class Spawner:
    """The children of one daemon."""

    def __init__(self, control):
        """Take requests from the socket *control*."""
        self.control = control
        self.children = {}

    def serve(self, wakeup):
        """Serve until the daemon is gone, then end everything."""
        while True:
            readable, _, _ = select.select([self.control, wakeup], [], [])
            if wakeup in readable:
                os.read(wakeup, 4096)
                self.reap()
            if self.control in readable and not self.serve_one():
                break
        self.end()

    def serve_one(self):
        """Serve one request; return whether there was one."""
        try:
            message, descriptors, flags, _ = socket.recv_fds(
                self.control, _MAX_MESSAGE, _MAX_DESCRIPTORS
            )
        except ConnectionError:
            return False
        if not message:
            return False
        request = json.loads(message)
        if flags & socket.MSG_CTRUNC:
            # There was no room for all of them: a child would lack its socket or its lease.
            close(descriptors)
            self.fail(request["start"], OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        elif "start" in request:
            self.start(request, descriptors)
        elif "ping" in request:
            self.tell({"pong": request["ping"]})
        else:
            for child in self.children.values():
                if child.number == request["kill"]:
                    child.signal(request["signal"])
        return True

    def start(self, request, descriptors):
        """Start a child and say so."""
        given, kept = descriptors[: request["given"]], descriptors[request["given"] :]
        number = request["start"]
        # `{0}` and nothing around it: a path may hold braces of its own.
        numbers = {f"{{{place}}}": str(one) for place, one in enumerate(given)}
        try:
            with output(request["log"]) as log:
                process = subprocess.Popen(
                    [numbers.get(argument, argument) for argument in request["argv"]],
                    env=request["env"],
                    cwd=request["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=given,
                    preexec_fn=begin,  # noqa: PLW1509
                )
        except Exception as error:  # noqa: BLE001
            self.fail(number, error)
            close(kept)
        else:
            self.children[process.pid] = Child(number, process, kept)
            self.tell({"started": number, "pid": process.pid})
        close(given)

    def fail(self, number, error):
        """Say that a child could not be started."""
        self.tell({"failed": number, "error": str(error), "errno": getattr(error, "errno", None)})

    def reap(self):
        """Report every child that has ended, and end what it left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                break
            child = self.children.pop(pid, None)
            if child is None:
                continue
            child.process.returncode = os.waitstatus_to_exitcode(status)
            child.signal(signal.SIGKILL)
            close(child.kept)
            self.tell({"exited": child.number, "status": child.process.returncode})
        for pid in descendants():
            # An orphan comes here only from a child that has ended itself.
            if pid not in self.children:
                kill(pid)

    def tell(self, message):
        """Send a message to the daemon, which may be gone."""
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            pass

    def end(self):
        """Kill all children, and then whoever they left to this process, until none is left."""
        # Nobody listens any more, and looking for children takes a descriptor.
        self.control.close()
        for child in self.children.values():
            child.signal(signal.SIGKILL)
        while True:
            killed = [kill(pid) for pid in descendants()]
            if not any(killed):
                return
            self.reap()
            time.sleep(0.005)


def output(path):
    """Open a log; on a full disk what is said is lost, and the child starts all the same."""
    try:
        return open(path, "ab")
    except OSError:
        return open(os.devnull, "ab")


def adopt_orphans():
    """Let this process, and not its parent, have the orphans among its descendants.

    They stay with it as long as it lives, and are known to be nobody's afterwards.
    """
    LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def begin():
    """Be a child: have the orphans of one's own, and end when the spawner does."""
    adopt_orphans()
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill(pid):
    """Kill a child; return whether that may be done."""
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        return False
    return True


def descendants():
    """Return the pids of this process's children, adopted ones included."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def close(descriptors):
    """Close each descriptor."""
    for descriptor in descriptors:
        os.close(descriptor)


def main():
    """Serve the daemon at the other end of descriptor `argv[1]`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Children would inherit SIG_IGN: a builder that has just begun could not be told to end.
        signal.signal(number, lambda *_: None)
    adopt_orphans()
    wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    Spawner(socket.socket(fileno=int(sys.argv[1]))).serve(wakeup)


if __name__ == "__main__":
    main()
