"""One model over HTTP, in the foreground and without a daemon: `envctl serve`."""

from __future__ import annotations

import logging
from collections.abc import Callable

import uvloop

from envd.config import Settings
from envd.run.processes import Processes
from envd.serve import calls
from envd.serve.core import Core


def serve(settings: Settings, processes: Processes, on_ready: Callable[[str], None]) -> bool:
    """Serve the one model that *settings* name until a signal comes.

    *on_ready* gets the URL once the model is loaded and asked for there, if no signal comes
    before. Return whether all went well. The root is not owned, and a daemon may serve it at the
    same time.

    Raises:
        EnvdError: the model cannot be loaded, or the address cannot be had.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(calls.mark)
    core = Core(settings, processes)
    return uvloop.new_event_loop().run_until_complete(_run(core, on_ready))


async def _run(core: Core, on_ready: Callable[[str], None]) -> bool:
    (served,) = core.settings.served
    await core.start()
    try:
        # A model may take minutes for it.
        if await core.before_stopped(core.loading.load(served.name, "", wait=True)):
            await core.serve_http()
            on_ready(core.http_url)
    except BaseException:
        await core.close()
        raise
    return await core.until_stopped()
