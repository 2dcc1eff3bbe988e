"""What a spec resolves to: every artifact with its SHA-256."""

from envd.lock.compile import Question
from envd.lock.lock import Artifact, Lock, Package
from envd.lock.pip import resolve
from envd.lock.sources import Sources
from envd.lock.wheels import Wheels
from envd.spec.conda_package import CondaPackage

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
