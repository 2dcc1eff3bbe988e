"""What is installed in this environment, read from its own files, and whose a file is.

Not by `importlib.metadata`, which Python 3.6 and 3.7 lack, and which says of a module only
who might have brought it: what was really loaded may lie in the RECORD of several.
"""

import base64
import csv
import email.parser
import hashlib
import json
import os
import re
import sys
import urllib.parse
import urllib.request


class Distribution:
    """A distribution: its metadata, where it lies, and which of the asked files are its.

    `hashes` are those that its RECORD gives for them.
    """

    def __init__(self, folder, base):
        """Read what lies in *folder*, whose files are named from *base*."""
        self._folder, self._base = folder, os.path.realpath(base)
        head = self._head()
        self.name, self.version = head.get("Name") or "", head.get("Version") or ""
        self.requires = head.get_all("Requires-Dist") or _requires(self._text("requires.txt"))
        self.extras = head.get_all("Provides-Extra") or []
        self.installer = (self._text("INSTALLER") or "").strip()
        self.origin = _object(self._text("direct_url.json"))
        self.editable = _project(self.origin)
        self.hashes = {}
        self.installed = self._installed()

    def _head(self):
        text = self._text("METADATA") or self._text("PKG-INFO") or self._text("") or ""
        return email.parser.HeaderParser().parsestr(text)

    def _text(self, name):
        try:
            path = os.path.join(self._folder, name) if name else self._folder
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return None

    def _installed(self):
        try:
            return os.stat(self._folder).st_mtime
        except OSError:
            return 0

    def look(self, files):
        """Find out which of *files*, real paths, are its."""
        record = self._text("RECORD")
        if record is not None:
            for row in csv.reader(record.splitlines()):
                path = os.path.normpath(os.path.join(self._base, row[0])) if row else ""
                if path in files:
                    self.hashes[path] = row[1] if len(row) > 1 else ""
            return
        listed = self._text("installed-files.txt")
        if listed is not None:
            paths = (
                os.path.normpath(os.path.join(self._folder, one)) for one in listed.split("\n")
            )
            self.hashes = {one: "" for one in map(os.path.realpath, paths) if one in files}
            return
        for top in (self._text("top_level.txt") or "").split():
            begin = os.path.join(self._base, top)
            for path in files:
                if path.startswith((begin + os.sep, begin + ".")):
                    self.hashes[path] = ""

    def fits(self):
        """Return how many of its files are on the disk as it brought them."""
        return sum(1 for path, said in self.hashes.items() if said and said == _hash(path))

    def document(self):
        """Return what is told of it."""
        return {
            "name": self.name,
            "version": self.version,
            "requires": self.requires,
            "extras": self.extras,
            "installer": self.installer,
            "origin": self.origin,
            "editable": self.editable,
        }


def distributions():
    """Return what is installed, the first of each name on sys.path."""
    found, links = {}, {}
    for base in sys.path:
        for name in _names(base):
            path = os.path.join(base, name)
            if name.endswith(".egg-link"):
                links[name[: -len(".egg-link")].lower()] = (_read(path) or "").split("\n")[0]
            elif name.endswith((".dist-info", ".egg-info")):
                one = Distribution(path, base)
                found.setdefault(normal(one.name), one)
            elif name.endswith(".egg") and os.path.isdir(os.path.join(path, "EGG-INFO")):
                one = Distribution(os.path.join(path, "EGG-INFO"), path)
                found.setdefault(normal(one.name), one)
    for name, place in links.items():
        if normal(name) in found:
            found[normal(name)].editable = os.path.realpath(place)
    found.pop("", None)
    return [found[name] for name in sorted(found)]


def owners(files, found):
    """Return for each of *files*, real paths, the place in *found* of whose it is.

    Where several claim it, it is whose files are there as they came; else whoever needs the
    other; else who came last, for that one has written over the other's.
    """
    for one in found:
        one.look(files)
    claims = {path: [] for path in files}
    for place, one in enumerate(found):
        for path in one.hashes:
            claims[path].append(place)
    together = {tuple(places) for places in claims.values() if places}
    chosen = {places: _choice(places, found) for places in together}
    whose = {
        path: chosen[tuple(places)] if places else _in_project(path, found)
        for path, places in claims.items()
    }
    return {path: place for path, place in whose.items() if place is not None}


def _choice(places, found):
    if len(places) == 1:
        return places[0]

    def merit(place):
        one, others = found[place], [found[other] for other in places if other != place]
        needs = sum(_needs(one, other) for other in others)
        return one.fits(), needs, one.installed

    return max(places, key=merit)


def _needs(one, other):
    begin = re.compile(r"[\w.-]+")
    names = (begin.match(text) for text in one.requires)
    return any(name and normal(name.group()) == normal(other.name) for name in names)


def _in_project(path, found):
    """Return the place of the editable distribution in whose folder *path* is."""
    fitting = [
        (len(one.editable), place)
        for place, one in enumerate(found)
        if one.editable and path.startswith(os.path.join(one.editable, ""))
    ]
    return max(fitting)[1] if fitting else None


def normal(name):
    """Return *name* as PEP 503 has it."""
    return re.sub("[-_.]+", "-", name).lower()


def _names(base):
    try:
        return sorted(os.listdir(base or "."))
    except OSError:
        return []


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _object(text):
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _project(origin):
    """Return the folder that *origin*, a direct_url.json, says is worked in."""
    info = origin.get("dir_info") if origin else None
    if not isinstance(info, dict) or not info.get("editable"):
        return ""
    parts = urllib.parse.urlsplit(str(origin.get("url")))
    return os.path.realpath(urllib.request.url2pathname(parts.path))


def _requires(text):
    """Return the lines of an egg's requires.txt as METADATA has them."""
    found, extra, marker = [], "", ""
    for line in map(str.strip, (text or "").splitlines()):
        if line.startswith("["):
            extra, _, marker = line.strip("[]").partition(":")
        elif line:
            about = ['extra == "%s"' % extra] * bool(extra) + ["(%s)" % marker] * bool(marker)
            found.append(line + ("; " + " and ".join(about) if about else ""))
    return found


def _hash(path):
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).digest()
    except OSError:
        return ""
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
