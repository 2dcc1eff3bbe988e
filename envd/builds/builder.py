"""The program that builds for the daemon: one task, read from a socket, told over it.

`python -m envd.builds.builder FD` reads one JSON line from descriptor FD, the settings and one of
the tasks of `_TASKS` with what it is about, and writes one per event: `{"stage",
"message"}`, `{"line"}`, `{"progress"}`, `{"env_id"}`; and at the end `{"done": answer}` or
`{"error"}`. The daemon itself never blocks and never forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from envd import config
from envd.environments.asked import Asked
from envd.environments.environments import Environments
from envd.environments.verifying import Verifier
from envd.errors import EnvdError, InternalError, from_os
from envd.events import Event, Locked, OnEvent, Progress, Stage
from envd.model.location import locate
from envd.sandbox import tiers
from envd.store import collecting, sweep, trash
from envd.store.collecting import Criteria

_MAX_LINE = 4000
_NICEST = 19


def main() -> None:
    """Do the task that comes over descriptor `argv[1]`."""
    # Cancelled: what was begun is cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rw") as file:

        def tell(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=file, flush=True)

        request = json.loads(file.readline())
        settings = config.from_document(request["settings"])
        tiers.know(settings, tiers.from_document(request["sandbox"]))
        try:
            do, about = _TASKS[request["task"]], request["about"]
            tell({"done": do(Environments(settings), about, lambda event: tell(_event(event)))})
        except EnvdError as error:
            tell({"error": error.document()})
        except OSError as error:
            tell({"error": from_os(error, settings.root).document()})
        except Exception as error:
            tell({"error": InternalError(f"the builder failed: {error!r}").document()})
            raise


def _build(environments: Environments, about: dict[str, Any], on_event: OnEvent) -> Any:
    asked = Asked.from_document(about["asked"])
    upgrade, retry = about["upgrade"], about["retry"]
    ready = environments.ready(asked, on_event, upgrade=upgrade, retry=retry)
    return {"cached": ready.cached}


def _lock(environments: Environments, about: dict[str, Any], on_event: OnEvent) -> Any:
    asked = Asked.from_document(about["asked"])
    return environments.lock_file(asked, about["platforms"], on_event)


def _locate(environments: Environments, about: str, _: OnEvent) -> str:
    return str(locate(about, environments.settings))


def _obtain(environments: Environments, about: str | None, on_event: OnEvent) -> None:
    environments.interpreters.obtain(about, on_event)


def _learn(environments: Environments, _: object, __: OnEvent) -> None:
    environments.interpreters.found()


def _purge(environments: Environments, about: dict[str, Any], _: OnEvent) -> Any:
    criteria = Criteria(**about)
    return collecting.collect(environments.store, environments.settings.gc, criteria).document()


def _verify(environments: Environments, about: dict[str, Any], on_event: OnEvent) -> Any:
    verifier = Verifier(environments.settings, environments.store)
    return asdict(verifier.verify(about["id"], on_event, repair=about["repair"]))


def _tidy(environments: Environments, about: dict[str, Any], _: OnEvent) -> None:
    if is_gentle := about["is_gentle"]:
        os.nice(_NICEST)
        sweep.leftovers(environments.store)
        sweep.superseded(environments.store)
    trash.empty(environments.store.layout.trash, is_gentle=is_gentle)


_TASKS: Mapping[str, Callable[[Environments, Any, OnEvent], Any]] = {
    "build": _build,
    "learn": _learn,
    "locate": _locate,
    "lock": _lock,
    "obtain": _obtain,
    "purge": _purge,
    "tidy": _tidy,
    "verify": _verify,
}


def _event(event: Event) -> dict[str, Any]:
    if isinstance(event, Stage):
        return {"stage": event.name, "message": event.message}
    if isinstance(event, Progress):
        return {"progress": asdict(event)}
    if isinstance(event, Locked):
        return {"env_id": event.env_id}
    return {"line": event.text[:_MAX_LINE]}


if __name__ == "__main__":
    main()
