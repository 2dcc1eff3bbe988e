"""A lock becomes a prefix: an interpreter, a virtualenv, its packages."""

from envd.build.interpreters import Interpreter, Interpreters
from envd.build.virtualenv import install

__all__ = ["Interpreter", "Interpreters", "install"]
