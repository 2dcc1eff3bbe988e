"""Loads the model that a LOAD frame describes."""

import importlib
import inspect
import os
import sys

from . import imported
from .refusals import Refused, name, refuse_missing, short, trace

_OLD = "the mlflow of this environment, 2.9 or older,"


def load(head, inherited=None):
    """Return what has the `predict` of the model that *head* describes.

    *inherited* are the names that a forked worker has from its template; None for a fresh
    worker. A forked one loads nothing that could come out otherwise than in a fresh one,
    and refuses with FRESH_NEEDED.
    """
    if inherited is None:
        return _load(head)
    inherited = inherited | imported.installed()
    _refuse_other_modules([head.get("code")], inherited)
    path, variables = list(sys.path), dict(os.environ)
    try:
        model = _load(head)
    except Refused as refused:
        # A fresh one says what is wrong, if it is not the template.
        raise Refused("FRESH_NEEDED", "not loaded in a forked worker: %s" % refused)
    _refuse_other_modules(set(sys.path) - set(path), inherited)
    if variables != dict(os.environ):
        changed = sorted(
            key
            for key in set(variables) | set(os.environ)
            if variables.get(key) != os.environ.get(key)
        )
        message = "loading the model sets the variables " + ", ".join(changed)
        raise Refused("FRESH_NEEDED", message)
    return model


def _refuse_other_modules(directories, inherited):
    """Refuse where a module of the model's would lose to one that is there already."""
    for one in directories:
        if not one:
            continue
        if os.path.exists(one) and not os.path.isdir(one):
            message = "loading the model adds `%s` to the import path" % one
            raise Refused("FRESH_NEEDED", message)
        both = sorted(imported.taken_by(one) & inherited)
        if both:
            message = "the model has modules that its environment has too: " + ", ".join(both[:20])
            raise Refused("FRESH_NEEDED", message)


def _load(head):
    if head.get("code"):
        # Before anything is unpickled: pickles refer to the modules in it.
        sys.path.insert(0, head["code"])
    try:
        return _loaded(head)
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        refuse_missing(error)
        message = "the model cannot be loaded: %s: %s" % (name(error), short(error))
        raise Refused("MODEL_INVALID", message, traceback=trace(), exception=name(error))


def _loaded(head):
    try:
        pyfunc = importlib.import_module("mlflow.pyfunc")
    except ImportError as error:
        # A loader of the model's own may do without mlflow; MLflow's cannot.
        if error.name != "mlflow" or head["loader_module"].split(".")[0] == "mlflow":
            raise
        load_pyfunc = importlib.import_module(head["loader_module"])._load_pyfunc
        return load_pyfunc(head["data"], **_config(head, load_pyfunc, "the model's own loader"))
    return pyfunc.load_model(head["model"], **_config(head, pyfunc.load_model, _OLD))


def _config(head, function, who):
    """Return the argument of *function* that is the model_config, if there is one."""
    if head.get("model_config") is None:
        return {}
    if "model_config" not in inspect.signature(function).parameters:
        raise Refused("MODEL_INVALID", "%s takes no `model_config`" % who)
    return {"model_config": head["model_config"]}
