"""A template: imports what the models of an environment import, and forks workers.

The process that is started becomes the *outer*: it holds the lease, waits, and ends as the
template does. The template imports, and never runs a model: one parallel region in it, and
what is forked hangs in its own. Over a SOCK_SEQPACKET pair it speaks as envd's spawner:

    {"start": id, "log", "env", "cwd", "given": n, "confinement"}     descriptors: the
        socket of the worker, then those whose places the confinement, or the log, names
    {"kill": id, "signal": number}                 the process group of that worker

and tells `{"started": id, "pid"}`, `{"failed": id, "error", "errno"}` and `{"exited": id,
"status"}`; before any of that `{"ready": true, "pid", "seconds", "modules", "threads"}`, or
`{"unusable": why}`, and ends. When the daemon goes, so do the workers.
"""

import array
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time

from . import forked, imported, kernel, outer, worker
from .threads import count_threads, why_not_forked

_MAX_MESSAGE = 1 << 20
_MAX_DESCRIPTORS = 32
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)


def main(descriptor, file, lease=None):
    """Serve the control socket *descriptor*; *file* says what to import, and inside what.

    That is a path, or a descriptor. Where it `is_inside` already there is no outer process.
    """
    started = time.perf_counter()
    worker.print_to_log()
    with open(int(file) if file.isdigit() else file) as text:
        document = json.load(text)
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    lease = document.get("lease") if lease is None else int(lease)
    try:
        if not document.get("is_inside"):
            _go_inside(document.get("outer") or {}, lease)
    except Exception as error:
        control.send(json.dumps({"unusable": "it has no root: %r" % (error,)}).encode())
        return
    template = Template(control, Imports(document["modules"]))
    order = template.serve(started)
    if order is None:
        _flush()
        os._exit(0)
    # In a process of its own by now, which ends as any worker does.
    forked.work(order, template.imports)


def _go_inside(document, lease):
    """Go on in a child, without the lease."""
    outer.go_inside(document, () if lease is None else (lease,))
    if lease is not None:
        os.close(lease)


class Imports:
    """The imports of a template, and what has come of them."""

    def __init__(self, modules):
        """Import the *modules*, in order, as far as they can be."""
        before, watch = dict(os.environ), imported.Watch()
        sys.meta_path.insert(0, watch)
        gc.disable()
        for module in modules:
            _import(module)
        _warm()
        sys.meta_path.remove(watch)
        gc.collect()
        if hasattr(gc, "freeze"):
            gc.freeze()
        self.names = watch.sought() | imported.top_levels()
        # Libraries speak to their own children so.
        self.variables = {
            key: value for key, value in os.environ.items() if before.get(key) != value
        }
        self.removed = set(before) - set(os.environ)


def _import(module):
    try:
        importlib.import_module(module)
    except BaseException as error:
        sys.stderr.write("`%s` is not imported: %r\n" % (module, error))


def _warm():
    """Let mlflow look once which package each module is of; loading a model asks for it."""
    requirements = sys.modules.get("mlflow.utils.requirements_utils")
    try:
        getattr(requirements, "_init_modules_to_packages_map", bool)()
    except Exception as error:
        sys.stderr.write("mlflow does not know its modules: %r\n" % (error,))


class Template:
    """Forks workers for a daemon."""

    def __init__(self, control, imports):
        """Take orders from the socket *control*."""
        self.imports = imports
        self._control = control
        self._numbers = {}
        self._me = kernel.pid_in_proc()
        self._wakeup = ()
        # What the imports may have started.
        self._helpers = set()

    def serve(self, started):
        """Serve until the daemon is gone; in a forked process, return what it is to do."""
        why = why_not_forked()
        if why:
            self._tell({"unusable": why})
            return None
        self._listen()
        self._tell({
            "ready": True,
            "pid": os.getpid(),
            "seconds": time.perf_counter() - started,
            "modules": sorted(imported.top_levels()),
            "threads": count_threads(),
        })  # fmt: skip
        while True:
            readable, _, _ = select.select([self._control, self._wakeup[0]], [], [])
            if self._wakeup[0] in readable:
                os.read(self._wakeup[0], 4096)
                self._reap()
            if self._control in readable:
                message, descriptors, is_whole = self._receive()
                if not message:
                    return None
                order = self._obey(json.loads(message.decode()), descriptors, is_whole)
                if order:
                    return order

    def _listen(self):
        """Have the end of a child wake `select`, and what it leaves come here."""
        kernel.adopt_orphans()
        self._helpers = set(kernel.children())
        self._wakeup = os.pipe()
        for one in self._wakeup:
            os.set_blocking(one, False)
        signal.set_wakeup_fd(self._wakeup[1])
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _receive(self):
        descriptors = array.array("i")
        room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * descriptors.itemsize)
        try:
            message, given, flags, _ = self._control.recvmsg(_MAX_MESSAGE, room, _CLOEXEC)
        except ConnectionError:
            # The daemon ended with messages unread: an end as any other.
            return b"", [], True
        for level, kind, data in given:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        return message, list(descriptors), not flags & socket.MSG_CTRUNC

    def _obey(self, request, descriptors, is_whole):
        """Do as the daemon says; in a process forked for it, return the order."""
        if "kill" in request:
            for pid, number in self._numbers.items():
                if number == request["kill"]:
                    _signal_group(pid, request["signal"])
            return None
        if not is_whole:
            self._fail(request, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        else:
            order = self._fork(request, descriptors)
            if order:
                return order
        for one in descriptors:
            os.close(one)
        return None

    def _fork(self, request, descriptors):
        _flush()
        try:
            pid = os.fork()
        except OSError as error:
            self._fail(request, error)
            return None
        if pid == 0:
            os.setsid()
            kernel.adopt_orphans()
            kernel.die_with(self._me)
            self._forget()
            return request, descriptors
        self._numbers[pid] = request["start"]
        self._tell({"started": request["start"], "pid": pid})
        return None

    def _forget(self):
        """Be no template any more."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in self._wakeup:
            os.close(one)
        self._control.close()

    def _reap(self):
        """Report every worker that has ended, and end what it left."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                break
            number = self._numbers.pop(ended.si_pid, None)
            if number is not None:
                _signal_group(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            if number is not None:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self._tell({"exited": number, "status": code})
        for pid in set(kernel.children()) - self._helpers - set(self._numbers):
            # An orphan comes here only from a worker that has ended itself.
            _signal_group(pid, signal.SIGKILL)

    def _fail(self, request, error):
        self._tell({"failed": request["start"], "error": str(error), "errno": error.errno})

    def _tell(self, message):
        try:
            self._control.send(json.dumps(message).encode())
        except OSError:
            # The daemon has gone; the next read says so too.
            pass


def _flush():
    """Have printed what was, or a fork prints it again."""
    sys.stdout.flush()
    sys.stderr.flush()


def _signal_group(pid, number):
    """Signal the process group of *pid*, or that alone while it has none of its own yet."""
    for signal_one in (os.killpg, os.kill):
        try:
            signal_one(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            # What is left of it is somebody else by now.
            pass
        return
