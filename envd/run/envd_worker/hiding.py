"""Lets distributions be as if they were not installed: to see whether a model needs them."""

import re
import sys


def hide(modules, distributions):
    """Let nobody find the *modules* and what is in them, nor that the *distributions* are there."""
    if modules or distributions:
        names = {_normal(one) for one in distributions}
        sys.meta_path[:] = [_Without(one, tuple(modules), names) for one in sys.meta_path]


class _Without:
    """A finder that finds all but what is hidden."""

    def __init__(self, finder, modules, distributions):
        self._finder, self._modules, self._distributions = finder, modules, distributions

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        """Find the module *name*, if it is not hidden."""
        if any(name == one or name.startswith(one + ".") for one in self._modules):
            return None
        if not hasattr(self._finder, "find_spec"):
            return None
        return self._finder.find_spec(name, path, target)

    def find_distributions(self, *context, **more):
        """Find what `importlib.metadata` asks for, if it is not hidden."""
        find = getattr(self._finder, "find_distributions", None)
        for one in find(*context, **more) if find else ():
            if _normal(one.metadata["Name"] or "") not in self._distributions:
                yield one


def _normal(name):
    return re.sub("[-_.]+", "-", name).lower()
