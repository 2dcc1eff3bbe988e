"""A lock becomes a prefix: an interpreter, a virtualenv, its packages."""

from envd.build.interpreters import Interpreter, Interpreters

__all__ = ["Interpreter", "Interpreters"]
