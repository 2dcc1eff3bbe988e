"""Runs a program confined: `confined JSON FD...`, by envd's own Python.

So that nothing of an environment runs before it is: not even the `.pth` files of its
packages, which its Python runs when it starts. The object in JSON, or in a file whose
descriptor stands there, for it may be long, has

    argv           the program; `{0}`, `{1}`... stand for the numbers of the descriptors
    passed         how many of the descriptors, from the first on, are the program's
    cwd            where it begins, if that is not its scratch folder
    outer          as in `outer.go_inside`; the process that stays outside has those
    kept           of the descriptors as long as all of it lives
    confinement    as in `confinement.confine`
    is_worker      whether who cannot be confined is to say so as a worker
"""

import json
import os
import socket
import sys

from . import confinement, kernel
from .refusals import Refused


def main(text, *given):
    """Become the program that *text* describes."""
    if text.isdigit():
        with open(int(text)) as file:
            file.seek(0)
            text = file.read()
    document, descriptors = json.loads(text), [int(one) for one in given]
    # Whoever started this may end without a word.
    kernel.die_with(kernel.parent_in_proc())
    try:
        _confine(document, descriptors)
    except Refused as refused:
        _refuse(refused, document, descriptors)
        sys.exit(1)
    passed = descriptors[: document.get("passed", 1)]
    for one in passed:
        os.set_inheritable(one, True)
    numbers = {"{%d}" % place: str(one) for place, one in enumerate(passed)}
    argv = [numbers.get(one, one) for one in document["argv"]]
    os.execv(argv[0], argv)  # noqa: S606


def _confine(document, descriptors):
    kept = [descriptors[place] for place in document.get("kept", [])]
    confinement.go_inside(document.get("outer"), kept)
    steps = dict(document.get("confinement") or {}, passed=document.get("passed", 1))
    left = [one for one in descriptors if one not in kept]
    if "cwd" in document:
        os.chdir(document["cwd"])
    confinement.confine(steps, left)


def _refuse(refused, document, descriptors):
    print(refused, file=sys.stderr)
    if document.get("is_worker"):
        from . import worker

        def refuse():
            raise refused

        worker.serve(socket.socket(fileno=descriptors[0]), refuse)
