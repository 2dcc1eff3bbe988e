"""What this kernel lets whoever runs this confine a worker by, tried in throw-away children."""

import json
import os
import socket

from . import broker, confinement, landlock, limits, mounts, namespaces, outer, seccomp


def main(descriptor=1, user="null"):
    """Write what can be had to *descriptor*, as one line of JSON.

    *user* is in JSON who workers are to be where this is root, a uid and a gid.
    """
    text = json.dumps(probe(json.loads(user))) + "\n"
    os.write(int(descriptor), text.encode())


def probe(user=None):
    """Return what works here, by name.

    `namespaces` are tried each with one for users, `nested_proc` a worker's own /proc in a
    template's, `detached_mounts` whether this process may make them for a worker, and
    `brokered_mounts` whether a process in namespaces of its own may. `all` is everything
    at once, as a worker has it that was forked from a template.
    """
    return {
        "landlock_abi": landlock.abi(),
        "landlock_scoped": _works(lambda: landlock.restrict({"scoped": True})),
        "seccomp": _works(lambda: seccomp.restrict({})),
        "namespaces": {name: _works(_leaving(name)) for name in namespaces.FLAGS},
        "nested_proc": _works(lambda: _in_new_proc(lambda: _in_new_proc(bool))),
        "detached_mounts": _works(lambda: _attach(bool)),
        "brokered_mounts": _works(lambda: _attach(broker.enter)),
        "all": _works(lambda: _be_alone(user)),
        "root": os.getuid() == 0,
        "machine": os.uname().machine,
    }


def _works(function):
    """Whether *function* returns, in a child that ends there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _leaving(name):
    return lambda: namespaces.leave(["user", name] if name != "user" else [name])


def _in_new_proc(function):
    """Call *function* in namespaces with a /proc of their own, without capabilities."""
    namespaces.leave(["user", "mount", "pid"])

    def inside():
        mounts.alone()
        mounts.proc()
        limits.drop_capabilities()
        function()

    if not _works(inside):
        raise OSError("no /proc of its own")


def _be_alone(user):
    """Confine this process by all there is, twice: as a template, and as its worker."""
    names = sorted(namespaces.FLAGS)
    system = ["/usr", "/bin", "/lib", "/lib64"]
    outer.go_inside({"namespaces": names, "read": system, "user": user, "places": ["/model"]})
    files = {"read": ["/"], "write": ["/tmp", "/dev"], "scoped": True}
    document = {
        "namespaces": names,
        "scratch": {"at": "/tmp", "size": 1 << 20},
        "landlock": files,
        "seccomp": {},
        "drop_capabilities": True,
    }
    confinement.confine(document, [])


def _attach(prepare):
    """Make a detached mount, after *prepare*, and attach it in namespaces of another's."""
    ours, theirs = socket.socketpair()

    def worker():
        namespaces.leave(["user", "mount"])
        mounts.alone()
        _, given, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        mounts.attach(int.from_bytes(given[0][2][:4], "little"), "/tmp")
        if os.listdir("/tmp") != os.listdir("/usr"):
            raise OSError("something else is mounted")

    def make():
        prepare()
        descriptor = broker.detached("/usr")
        given = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, "little"))
        theirs.sendmsg([b"."], [given])

    # Not after one another: what is made may not outlive its maker's namespaces.
    if not (_works(make) and _works(worker)):
        raise OSError("no detached mounts")
