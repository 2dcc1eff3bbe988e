"""The program that builds for the daemon: one task, read from a socket, told over it.

`python -m envd.builder FD` reads one JSON line from descriptor FD and writes one per event:
`{"stage", "message"}` and `{"line"}`, and at the end `{"ready": env_id, "cached"}`,
`{"obtained": version}`, `{"located": path}`, `{"locked"}` or `{"error"}`. The daemon itself
never blocks and never forks.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from envd import config
from envd.asked import Asked
from envd.environments import Environments
from envd.errors import EnvdError, InternalError
from envd.events import Event, Stage
from envd.model.location import locate

_MAX_LINE = 4000


def main() -> None:
    """Do the task that comes over descriptor `argv[1]`."""
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rw") as file:

        def tell(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=file, flush=True)

        try:
            tell(_do(json.loads(file.readline()), lambda event: tell(_event(event))))
        except EnvdError as error:
            tell({"error": error.document()})
        except Exception as error:
            tell({"error": InternalError(f"the builder failed: {error!r}").document()})
            raise


def _do(task: dict[str, Any], on_event: Any) -> dict[str, Any]:
    settings = config.from_document(task["settings"])
    if "locate" in task:
        return {"located": str(locate(task["locate"], settings))}
    environments = Environments(settings)
    if "lock" in task:
        environments.lock(Asked.from_document(task["lock"]), on_event)
        return {"locked": True}
    if "build" in task:
        asked = Asked.from_document(task["build"])
        ready = environments.ready(asked, on_event, upgrade=task["upgrade"])
        return {"ready": ready.environment.id, "cached": ready.cached}
    if "obtain" in task:
        interpreter, _ = environments.interpreters.obtain(task["obtain"], on_event)
        return {"obtained": interpreter.python.version}
    return {"obtained": str(len(environments.interpreters.found()))}


def _event(event: Event) -> dict[str, str]:
    if isinstance(event, Stage):
        return {"stage": event.name, "message": event.message}
    return {"line": event.text[:_MAX_LINE]}


if __name__ == "__main__":
    main()
