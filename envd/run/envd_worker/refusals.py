"""What cannot be done, as the daemon is told it."""

import importlib.util
import sys
import traceback

_MAX_TRACEBACK = 8000
# A request may have names of any length, and what is said of them goes into the head of a frame.
_MAX_SAID = 4000
_SCHEMA_FUNCTIONS = ("_enforce_", "_validate_prediction_input", "_validate_params")


class Refused(Exception):
    """A request that cannot be answered: a reason of envd's, and its metadata."""

    def __init__(self, reason, message, **metadata):
        """Keep what the daemon makes an error of."""
        super().__init__(message)
        self.reason, self.metadata = reason, metadata

    def document(self):
        """Return the head of the answer that says so."""
        metadata = {key: str(value)[:_MAX_TRACEBACK] for key, value in self.metadata.items()}
        return {"reason": self.reason, "message": str(self)[:_MAX_SAID], "metadata": metadata}


def refuse_missing(error):
    """Refuse a request for want of a module, if that is what *error* is.

    Only a top-level module that cannot be found: `cannot import name` and a missing
    shared library are no reason to install something.
    """
    if not isinstance(error, ModuleNotFoundError) or not isinstance(error.name, str):
        return
    module = error.name.split(".")[0]
    if module and module not in sys.modules and importlib.util.find_spec(module) is None:
        raise Refused("IMPORT_FAILED", str(error), module=module, traceback=trace())


def refuse(error):
    """Refuse a request because *error*, which is being handled, was raised in the model."""
    refuse_missing(error)
    functions = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if any(one.startswith(_SCHEMA_FUNCTIONS) for one in functions):
        message = "the input does not fit the model: " + short(error)
        raise Refused("PAYLOAD_INVALID", message, **told(error))
    message = "the model raised " + name(error) + ": " + short(error)
    about = dict(told(error), exception=name(error), traceback=trace())
    raise Refused("MODEL_RAISED", message, **about)


def short(error):
    """Return what *error* says, if that is not too long."""
    try:
        said = str(error).rstrip()
    except Exception:
        # It is a class of the model's.
        said = ""
    return (said or type(error).__name__)[:2000]


def name(error):
    """Return the name of the type of *error*."""
    return type(error).__name__


def told(error):
    """Return what is told of *error*, met while an input was read, beside its message.

    MLflow's own exceptions say what its server would answer: a code, and since 3.x a class.
    """
    about = {"traceback": trace()}
    if hasattr(error, "serialize_as_json") and isinstance(getattr(error, "error_code", None), str):
        about = {"traceback": getattr(error, "json_kwargs", {}).get("stack_trace")}
        for key in ("error_code", "error_class", "sqlstate"):
            about[key] = getattr(error, key, None)
    return {key: value for key, value in about.items() if isinstance(value, str)}


def trace():
    """Return the end of the traceback of the exception that is being handled."""
    return traceback.format_exc()[-_MAX_TRACEBACK:]
