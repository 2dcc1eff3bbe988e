"""Finds out what a model needs, where it was made: it is loaded and asked, and watched.

MLflow takes every distribution that might have brought a module that was imported, whoever
imported it. Here it counts which files were loaded, and who asked for them: what only
libraries import is left to what they require, and what nobody requires is hidden, to see
whether the model does without.
"""

from envd.infer.choosing import infer
from envd.infer.lines import Inferred, Line, Local, key_of

__all__ = ["Inferred", "Line", "Local", "infer", "key_of"]
