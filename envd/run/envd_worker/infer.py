"""What a model takes where it was made: loads it, asks it, and tells whose files that were.

FILE holds a JSON object, and another replaces it:

    load        as in a LOAD frame
    input       the file of the input, absent for none; content_type
    path        what goes before everything on sys.path
    hidden      {"modules", "distributions"}: what is not to be found

It runs with the variables of whoever asks, PYTHONPATH and their own packages included: they
are where the model comes from.
"""

import hashlib
import json
import os
import platform
import sys
import sysconfig

from . import asking, hiding, imported, installed, loading, reading
from .edges import Edges
from .refusals import Refused

_LIMIT = 1 << 30


def main(file):
    """Answer the question in *file*."""
    with open(file, encoding="utf-8") as text:
        document = json.load(text)
    sys.path[:0] = document.get("path", [])
    hidden = document.get("hidden") or {}
    hiding.hide(hidden.get("modules", ()), hidden.get("distributions", ()))
    # Before anything was asked for: what `.pth` files import needs nobody.
    known = set(sys.modules)
    edges = Edges()
    edges.begin()
    try:
        answer = {"answer": _answer(document)}
    except Refused as refused:
        answer = {"failure": refused.document()}
    answer.update(_found(edges, known))
    with open(file, "w", encoding="utf-8") as text:
        json.dump(answer, text)


def _answer(document):
    """Return what tells the model's answer from any other; nothing where it was not asked."""
    model = loading.load(document["load"])
    if not document.get("input"):
        return ""
    with open(document["input"], "rb") as file:
        payload = file.read()
    head = {"content_type": document["content_type"]}
    given = reading.read(head, payload, reading.metadata_of(model))
    raw = asking.ask(model.predict, given.data, given.params)
    body, _ = given.written(raw, _LIMIT)
    return hashlib.sha256(body).hexdigest()


def _found(edges, known):
    here = os.path.join(os.path.dirname(os.path.realpath(__file__)), "")
    is_standard, places = _standard(), {}
    left_out = known - {what for _, what in edges.found}
    for name, module in list(sys.modules.items()):
        if name in left_out:
            continue
        place = os.path.realpath(imported._place(module))
        if imported._place(module) and not place.startswith(here) and not is_standard(place):
            places[name] = place
    found = installed.distributions()
    # Which of two brought a module the libraries tell, where its text is the same in both.
    whose = installed.owners(set(places.values()) | _mapped(), found)
    return {
        "modules": {name: [one, whose.get(one, -1)] for name, one in places.items()},
        "edges": sorted(edge for edge in edges.found if edge[1] in places),
        "distributions": [one.document() for one in found],
        "markers": _markers(),
    }


def _standard():
    """Return what says whether a file is of the standard library."""
    folders = {os.path.realpath(sysconfig.get_path(one)) for one in ("stdlib", "platstdlib")}
    inside = tuple(os.path.join(one, "") for one in folders)
    packages = tuple(os.path.join(one, "") for one in imported.site_directories())
    others = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)

    def is_standard(path):
        is_other = path.startswith(packages) or any(one in path for one in others)
        return path.startswith(inside) and not is_other

    return is_standard


def _mapped():
    """Return the libraries that this process has loaded."""
    try:
        with open("/proc/self/maps") as file:
            lines = [line.split(None, 5) for line in file]
    except OSError:
        return set()
    return {os.path.realpath(one[5].strip()) for one in lines if len(one) == 6 and "/" in one[5]}


def _markers():
    """Return what markers of requirements ask for (PEP 508)."""
    version = sys.implementation.version
    implementation = "%d.%d.%d" % version[:3]
    if version.releaselevel != "final":
        implementation += version.releaselevel[0] + str(version.serial)
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": implementation,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": "%d.%d" % sys.version_info[:2],
        "sys_platform": sys.platform,
    }
