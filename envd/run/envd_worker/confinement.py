"""Confines the process that is about to load a model: the same for a fresh one and a forked.

What is asked for is a JSON object; steps that are absent are off, one that cannot be taken
is an error. Numbers are places among the descriptors that came with it:

    cgroups            of open `cgroup.procs`
    namespaces         names, as in `namespaces.FLAGS`
    scratch            {"at", "size", "kept"}: an empty folder of its own, /dev/shm another;
                       of what was below it there is only what is kept
    model, model_at    of a detached mount, and the empty folder to attach it to; without that,
                       of a directory that may be read wherever it lies
    limits             resource limits by name
    drop_capabilities  true
    landlock           {"read", "write", "scoped"}, see `landlock.restrict`
    seccomp            {"sockets", "among"}, see `seccomp.restrict`
    passed             how many of the descriptors stay open, from the first on; else that

The order is the only one that works: a process leaves its namespaces before it has
threads, mounts while landlock lets it, and gives up what these need last.
"""

import os

from . import kernel, landlock, limits, mounts, namespaces, outer, seccomp
from .refusals import Refused, name, short


def confine(document, descriptors):
    """Confine this process as *document* says, or go on so in a child.

    Of *descriptors* those are closed that are not passed on.

    Raises:
        Refused: a step cannot be taken; those before it have been.
    """

    def take():
        for step in _STEPS:
            step(document, descriptors)

    _or_refused(take)


def go_inside(document, kept=()):
    """Go on in a child, inside of what *document* says of an outer process, if it does.

    That keeps the descriptors *kept*, which the child has not.

    Raises:
        Refused: there can be no such inside.
    """
    if document is not None:
        _or_refused(lambda: outer.go_inside(document, kept))
        for one in kept:
            os.close(one)


def _or_refused(take):
    try:
        take()
    except (OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        message = "the worker cannot be confined: %s: %s" % (name(error), short(error))
        raise Refused("CONFINEMENT_FAILED", message)


def _join_cgroups(document, descriptors):
    for place in document.get("cgroups", []):
        limits.join_cgroup(descriptors[place])


def _refuse_root(document, _):
    """Refuse namespaces that root only seems to be locked up in.

    Who is root outside may write what belongs to root in a /proc of its own all the same:
    `core_pattern` is a way out. A rule for files is not fooled, unless it says so.
    """
    if namespaces.HOST_UID or "mount" not in document.get("namespaces", []):
        return
    rules = document.get("landlock") or {}
    written = {os.path.normpath(one).split("/")[1] for one in rules.get("write", [])}
    if "read" not in rules or written & {"", "proc"}:
        raise PermissionError("namespaces do not hold root; run as somebody else, or by landlock")


def _leave_namespaces(document, _):
    """Leave those named for new ones; with one for processes, go on as its first."""
    names = document.get("namespaces", [])
    if not names:
        return
    parent = kernel.parent_in_proc()
    namespaces.leave(names)
    # Who changes who it is must say it again.
    kernel.die_with(parent)
    if "pid" in names:
        kernel.go_on_in_child()
    if "mount" in names:
        mounts.alone()
        if "pid" in names:
            mounts.proc()


def _have_scratch(document, _):
    scratch = document.get("scratch")
    if not scratch:
        return
    kept = [mounts.Tree(one) for one in scratch.get("kept", [])]
    mounts.tmpfs(scratch["at"], scratch["size"])
    for one in kept:
        one.attach()
    if os.path.isdir("/dev/shm"):
        mounts.tmpfs("/dev/shm", scratch["size"])
    # What it was in is below what has just been mounted.
    os.chdir(scratch["at"])


def _attach_model(document, descriptors):
    if "model_at" in document:
        mounts.attach(descriptors[document["model"]], document["model_at"])


def _close(document, descriptors):
    for one in descriptors[document.get("passed", 1) :]:
        os.close(one)


def _limit(document, _):
    limits.limit(document.get("limits", {}))


def _drop_capabilities(document, _):
    if document.get("drop_capabilities"):
        limits.drop_capabilities()


def _restrict_files(document, descriptors):
    rules = document.get("landlock")
    if not rules:
        return
    if "read" in rules and document.get("model") is not None:
        held = "/proc/self/fd/%d" % descriptors[document["model"]]
        rules = dict(rules, read=[*rules["read"], document.get("model_at", held)])
    landlock.restrict(rules)


def _restrict_calls(document, _):
    if "seccomp" in document:
        seccomp.restrict(document["seccomp"])


_STEPS = (
    _refuse_root,
    _join_cgroups,
    _leave_namespaces,
    _have_scratch,
    _attach_model,
    _limit,
    _drop_capabilities,
    _restrict_files,
    _close,
    _restrict_calls,
)
