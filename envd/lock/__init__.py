"""What a spec resolves to: every artifact with its SHA-256."""

from envd.lock.compile import Question
from envd.lock.lock import Artifact, CondaPackage, Lock, Package
from envd.lock.pip import resolve
from envd.lock.sources import Sources
from envd.lock.wheels import Wheels

__all__ = [
    "Artifact",
    "CondaPackage",
    "Lock",
    "Package",
    "Question",
    "Sources",
    "Wheels",
    "resolve",
]
