"""Loads a model that `envd.record` wrote. It needs nothing, not even MLflow, which may load it too.

This file lies in the `code/` of each such model, the same in all of them. `recorded.json`
beside the model's `MLmodel` says

    kind        "instance", which has a `predict`, "function", or "script"
    file        the pickle of it, or the script
    object      of a script: the name of what it makes
    artifacts   by name, the paths in the model of the files it uses
    config      what it is loaded with, where nobody says otherwise
"""

import importlib.util
import inspect
import json
import os
import pickle


class Context:
    """What a model gets with each input: the paths of its artifacts by name, and its config."""

    def __init__(self, artifacts, model_config):
        """Keep both."""
        self.artifacts, self.model_config = artifacts, model_config


class Adapted:
    """The model, asked as MLflow asks: `predict(data, params)`."""

    def __init__(self, model, context):
        """Let *model* load what it needs."""
        self._context = context
        if not hasattr(model, "predict"):
            self._predict = model
        else:
            if hasattr(model, "load_context"):
                model.load_context(context)
            self._predict = model.predict
        if hasattr(model, "predict_stream"):
            self._stream = model.predict_stream
            self.predict_stream = self._said

    def predict(self, data, params=None):
        """Return what the model answers."""
        return self._asked(self._predict, data, params)

    def _said(self, data, params=None):
        return self._asked(self._stream, data, params)

    def _asked(self, function, data, params):
        named = inspect.signature(function).parameters
        given = [self._context, data] if next(iter(named), None) == "context" else [data]
        if "params" in named:
            return function(*given, params=params)
        return function(*given)


def _load_pyfunc(path, model_config=None):
    with open(os.path.join(path, "recorded.json"), encoding="utf-8") as file:
        about = json.load(file)
    config = dict(about["config"], **(model_config or {}))
    artifacts = {name: os.path.join(path, one) for name, one in about["artifacts"].items()}
    file = os.path.join(path, about["file"])
    if about["kind"] == "script":
        model = from_script(file, about["object"])
    else:
        with open(file, "rb") as pickled:
            model = pickle.load(pickled)  # noqa: S301
    return Adapted(model, Context(artifacts, config))


def from_script(file, name):
    """Return what the script *file* calls *name*; of a class, an instance."""
    spec = importlib.util.spec_from_file_location("recorded_script", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name)
    return found() if isinstance(found, type) else found
