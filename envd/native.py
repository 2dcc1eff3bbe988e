"""rattler's native module, and what its functions need of a loop.

`import rattler` and `import asyncio` take as long as linking 3,000 files does: they bring
what solves, fetches and speaks TLS. An installation needs ten classes and one future. What is
inside rattler is its own business, so its version is bound, and a test says what is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType

# Importing typing takes as long as json.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable
    from typing import Any


def load() -> Any:
    """Return `rattler.rattler` without the package around it, where that is not there yet."""
    if "rattler" not in sys.modules:
        found = importlib.util.find_spec("rattler")
        if found is None:
            message = "rattler is not installed"
            raise ImportError(message)
        package = ModuleType("rattler")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["rattler"] = package
    return importlib.import_module("rattler.rattler")


def finished(call: Callable[[], object]) -> Any:
    """Call what returns one of rattler's futures, wait for that, and return its result.

    In a process without asyncio: it finds what stands here under that name.
    """
    loop = _Loop()
    module = ModuleType("asyncio")
    module.get_running_loop = lambda: loop  # type: ignore[attr-defined]
    sys.modules["asyncio"] = module
    future = call()
    if not isinstance(future, _Future):
        message = f"rattler returned {future!r}, which is no future of its loop"
        raise TypeError(message)
    future.done.wait()
    if future.error:
        raise future.error
    return future.result


class _Future:
    """What a thread of rattler's sets, once."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: object = None
        self.error: BaseException | None = None

    def add_done_callback(self, callback: object) -> None:
        """Take what would tell rattler of a cancellation; there is none."""

    def cancelled(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        self.result = result
        self.done.set()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self.done.set()


class _Loop:
    """A loop that waits for one future."""

    def create_future(self) -> _Future:
        return _Future()

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(
        self, call: Callable[..., object], *values: object, context: contextvars.Context
    ) -> None:
        """Call it at once: it only sets the future."""
        del context
        call(*values)
