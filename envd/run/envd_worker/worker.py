"""A worker: answers the frames on its socket until that ends."""

import io
import json
import os
import socket
import sys
import time

from . import imported, loading
from .inbox import Inbox
from .protocol import CANCEL, DONE, FAILED, LOAD, send
from .refusals import Refused
from .scoring import Scorer


class Log(io.FileIO):
    """The log of this worker: on a full disk what is said is lost, and nothing else."""

    def write(self, data):
        """Write *data*, if there is room."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def print_to_log():
    """Let what is printed go to descriptors 1 and 2, which are the log."""
    sys.stdout, sys.stderr = _file(1), _file(2)


def _file(descriptor):
    binary = io.BufferedWriter(Log(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(binary, errors="backslashreplace", line_buffering=True)


def main(descriptor, text="{}", *more):
    """Serve the socket *descriptor*, confined as the JSON object *text* says, if it says so.

    `confinement` is as in `confinement.confine`, over all the descriptors, and `outer` as
    in `outer.go_inside`.
    """
    print_to_log()
    descriptors = [int(descriptor), *map(int, more)]
    connection = socket.socket(fileno=descriptors[0])
    document = json.loads(text)
    if not document:
        serve(connection)
        return
    # Neither ctypes nor this is of use to a worker that is not confined.
    from . import confinement

    def confine():
        confinement.go_inside(document.get("outer"))
        confinement.confine(document.get("confinement") or {}, descriptors)

    serve(connection, confine)


def serve(connection, confine=bool, inherited=None):
    """Answer frames until the socket ends, once *confine* has been called.

    Where it refuses, everything is refused. *inherited* is as in `loading.load`.
    """
    # Model code may start children: none of them may hold the socket open.
    os.set_inheritable(connection.fileno(), False)
    worker, inbox = Worker(inherited), Inbox(connection)
    try:
        confine()
    except Refused as refused:
        worker.refuse(refused)
    while True:
        request = inbox.take()
        if request is None:
            return
        for frames in worker.answers(request, inbox):
            send(connection, frames)


class Worker:
    """One model, from the frame that says which on."""

    def __init__(self, inherited):
        """Load nothing yet."""
        self._inherited, self._scorer, self._refused = inherited, None, None
        # Until it has been told what a fresh worker has of its environment.
        self._watch, self._known, self._outside = None, frozenset(), ()

    def refuse(self, refused):
        """Answer nothing but that."""
        self._refused = refused

    def answers(self, request, inbox):
        """Yield the frames to send for *request*, some at a time."""
        refused = self._refused
        if request.kind == CANCEL:
            refused = Refused("CANCELLED", "nobody waits for the answer any more")
        if refused:
            yield [(request.number, FAILED, refused.document(), b"")]
        elif request.kind == LOAD:
            yield [self._load(request)]
        else:
            for frames in self._scorer.answers(request, inbox):
                self._tell_modules(frames)
                yield frames

    def _load(self, request):
        started, head = time.perf_counter(), request.head
        if self._inherited is None:
            self._watch = imported.Watch()
            sys.meta_path.insert(0, self._watch)
        try:
            model = loading.load(head, self._inherited)
        except Refused as refused:
            self.refuse(refused)
            return request.number, FAILED, refused.document(), b""
        at_once = head.get("max_batch", 1) if head.get("batch") else 1
        self._scorer = Scorer(model, head["max_payload"], at_once)
        answer = {"pid": os.getpid(), "modules": []}
        if self._watch:
            self._outside = (head.get("code"), head.get("data"))
            answer["modules"] = self._watch.imported(outside=self._outside)
            self._known = frozenset(answer["modules"])
        answer["seconds"] = time.perf_counter() - started
        return request.number, DONE, answer, b""

    def _tell_modules(self, frames):
        """Add to the first answer which modules have come since the model was loaded."""
        answered = [head for _, kind, head, _ in frames if kind == DONE]
        if self._watch is None or not answered:
            return
        new = self._watch.imported(self._known, self._outside)
        if self._watch in sys.meta_path:
            sys.meta_path.remove(self._watch)
        self._watch = None
        if new:
            answered[0]["modules"] = new
