"""Which modules a process has, whose they are, and which names a folder would take."""

import os
import site
import sys
import sysconfig

# More would not fit into the head of an answer.
_MAX_BYTES = 1 << 19


def site_directories():
    """Return where the packages of this environment are."""
    found = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    if hasattr(site, "getsitepackages"):
        # Debian's Python has them elsewhere than sysconfig says.
        found += [one for one in site.getsitepackages() if one.startswith(sys.prefix)]
    return sorted({form for one in found for form in (one, os.path.realpath(one))})


class Watch:
    """Stands in sys.meta_path, and sees in which order modules are asked for.

    In sys.modules one is behind those that it imported itself.
    """

    def __init__(self):
        """Have seen none."""
        self._names = {}

    def find_spec(self, name, *_):
        """Find nothing."""
        self._names.setdefault(name, len(self._names))

    def imported(self, known=frozenset(), outside=()):
        """Return the modules of this environment in the order in which they came.

        Those in *known* are left out, and those that lie in the directories *outside*.
        """
        inside, outside, size, found = _beginnings(site_directories()), _beginnings(outside), 0, []
        for name in sorted(sys.modules, key=lambda one: self._names.get(one, -1)):
            place = _place(sys.modules.get(name))
            if name in known or not place.startswith(inside) or place.startswith(outside):
                continue
            size += len(name) + 4
            if size > _MAX_BYTES:
                break
            found.append(name)
        return found

    def sought(self):
        """Return the top-level names that were asked for, there or not."""
        return {name.split(".")[0] for name in self._names}


def top_levels():
    """Return the top-level names of everything that has been imported."""
    return {name.split(".")[0] for name in list(sys.modules)}


def installed():
    """Return the top-level names in the folders of the environment's packages."""
    return {name for one in site_directories() for name in taken_by(one)}


def taken_by(directory):
    """Return the names of the modules that *directory*, on sys.path, would provide."""
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return set()
    found = set()
    for entry in entries:
        name, dot, _ = entry.name.partition(".")
        # A folder without `__init__` is a package as well.
        is_module = entry.name.endswith((".py", ".pyc", ".so")) or (entry.is_dir() and not dot)
        if is_module and name.isidentifier():
            found.add(name)
    return found - {"__pycache__", "__init__"}


def _beginnings(directories):
    return tuple(os.path.join(one, "") for one in directories if one)


def _place(module):
    """Return the file of *module*, without waking one that loads lazily."""
    try:
        place = object.__getattribute__(module, "__dict__").get("__file__")
    except AttributeError:
        return ""
    return place if isinstance(place, str) else ""
