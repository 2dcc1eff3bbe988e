"""What a model asks for, in one canonical form with one key."""

from envd.spec.dependencies import Dependencies
from envd.spec.gather import read
from envd.spec.python import Python
from envd.spec.requirement import Requirement
from envd.spec.spec import Indexes, Spec, of
from envd.spec.terms import Terms

__all__ = ["Dependencies", "Indexes", "Python", "Requirement", "Spec", "Terms", "of", "read"]
