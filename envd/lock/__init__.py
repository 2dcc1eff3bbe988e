"""What a spec resolves to: every artifact with its SHA-256."""

from envd.lock.lock import Lock, Package
from envd.lock.pip import resolve

__all__ = ["Lock", "Package", "resolve"]
