"""Sees who imports what, of what is loaded already as well: `import` itself is watched."""

import builtins
import importlib
import io
import pickle
import sys

# Stands for the pickles of the model, which import by themselves.
PICKLE = "<pickle>"


class Edges:
    """The imports since `begin`, as pairs of module names: who, and what."""

    def __init__(self):
        """Have seen none."""
        self.found = set()

    def begin(self):
        """Watch from now on."""
        self._import = builtins.__import__
        self._import_module = importlib.import_module
        builtins.__import__ = self._imported
        importlib.import_module = self._imported_by_name
        if hasattr(sys, "addaudithook"):
            sys.addaudithook(self._heard)
        else:
            _watch_pickles(self.found)

    def _imported(self, name, globals=None, locals=None, fromlist=(), level=0):  # noqa: A002
        module = self._import(name, globals, locals, fromlist, level)
        try:
            about = globals if globals and "__name__" in globals else _around(sys._getframe(1))
            self._note(name, about, fromlist, level)
        except Exception:
            # What modules put in the place of their names is theirs.
            return module
        return module

    def _note(self, name, about, fromlist, level):
        who = str(about["__name__"])
        if level:
            package = about.get("__package__") or who
            name = ".".join(package.split(".")[: -(level - 1) or None] + [name] * bool(name))
        elif who.partition(".")[0] == "cloudpickle" and _caller() == "subimport":
            who = PICKLE
        self.found.add((who, name))
        for one in fromlist or ():
            if "%s.%s" % (name, one) in sys.modules:
                self.found.add((who, "%s.%s" % (name, one)))

    def _imported_by_name(self, name, package=None):
        who = _around(sys._getframe(1))["__name__"]
        module = self._import_module(name, package)
        self.found.add((who, getattr(module, "__name__", name)))
        return module

    def _heard(self, event, arguments):
        if event == "pickle.find_class":
            self.found.add((PICKLE, arguments[0]))


def _watch_pickles(found):
    """See what pickles refer to, of which Python before 3.8 tells nobody."""

    def watched(kind):
        class Unpickler(kind):
            def find_class(self, module, name):
                found.add((PICKLE, module))
                return super().find_class(module, name)

        return Unpickler

    pickle.Unpickler, pickle._Unpickler = map(watched, (pickle.Unpickler, pickle._Unpickler))
    pickle.load = lambda file, **more: pickle.Unpickler(file, **more).load()  # noqa: S301
    pickle.loads = lambda data, **more: pickle.load(io.BytesIO(data), **more)  # noqa: S301


def _around(frame):
    """Return the variables of the module whose code runs in *frame*, or called what does.

    Text that is executed may have none, and whoever calls `__import__` by hand gives none.
    """
    while frame.f_back and "__name__" not in frame.f_globals:
        frame = frame.f_back
    return frame.f_globals if "__name__" in frame.f_globals else {"__name__": "__main__"}


def _caller():
    """Return the name of the function that imports, which is some frames up."""
    return sys._getframe(3).f_code.co_name
