"""Asks a model."""

import inspect

from .refusals import refuse


def ask(function, data, params):
    """Return what *function*, which is the model's, answers; refuse what it raises."""
    try:
        return call(function, data, params)
    except (Exception, SystemExit) as error:
        refuse(error)


def call(function, data, params):
    """Return what *function* answers, which gets the *params* if it takes any."""
    if params is not None and "params" in inspect.signature(function).parameters:
        return function(data, params=params)
    return function(data)
