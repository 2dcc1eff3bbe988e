"""What a forked process does to be as a fresh worker, before it serves as one."""

import gc
import os
import random
import socket
import sys
import time

from . import confinement, worker


def work(order, imports):
    """Be the worker that *order*, a request and its descriptors, asks for."""
    request, descriptors = order
    _print_to(request["log"], descriptors)
    _surround(request["env"], imports)
    sys.argv[1:] = ["serve", str(descriptors[0])]
    gc.enable()

    def confine():
        confinement.confine(request.get("confinement") or {}, descriptors)
        # It may be one that only the confined see.
        os.chdir(request["cwd"])
        _reseed()

    connection = socket.socket(fileno=descriptors[0])
    worker.serve(connection, confine, imports.names)


def _print_to(log, descriptors):
    """Have no input, and print to the end of *log*; nowhere, where it cannot be written.

    It is a path, or the place of a descriptor: a log may lie where a template cannot see it.
    """
    try:
        if isinstance(log, int):
            output = os.dup(descriptors[log])
        else:
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        output = os.open(os.devnull, os.O_WRONLY)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(empty)
    os.close(output)


def _surround(variables, imports):
    """Have the environment *variables*, as *imports* would have changed them."""
    os.environ.clear()
    os.environ.update(imports.variables)
    os.environ.update(variables)
    for name in imports.removed:
        os.environ.pop(name, None)
    time.tzset()
    tempfile = sys.modules.get("tempfile")
    if tempfile:
        # Where that is was looked up in the environment of the template.
        tempfile.tempdir = None


def _reseed():
    """Draw other numbers than whoever was forked before; torch starts the same everywhere."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed()
