"""Has a daemon go on by its settings as they are now, as far as that takes no restart: SIGHUP."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
from collections.abc import Callable
from typing import Any

from envd import config
from envd.access import exposure
from envd.config import Settings
from envd.errors import EnvdError
from envd.sandbox import tiers
from envd.serve.core import Core

log = logging.getLogger(__name__)
# Whoever has them read again wants to know what came of it.
log.setLevel(logging.INFO)

# What is looked up whenever it counts. All else is built in when the daemon starts.
LIVE = frozenset(
    {
        # The files of these are read again in any case.
        *(f"access.{name}" for name in ("certificates", "tls_cert", "tls_key", "tokens")),
        *(f"daemon.{name}" for name in ("drain", "max_in_flight", "max_in_parts")),
        "models.roots",
        *(f"http.{name}" for name in ("hosts", "model", "timeout")),
        *(f"workers.{name}" for name in (
            "per_model", "queue", "concurrency", "max_batch", "template", "time_limit",
            "memory_limit", "cpu_limit", "process_limit", "idle_timeout", "max_age", "max_memory",
            "memory",
        )),
    }
)  # fmt: skip
# But not whether there is one: how it listens goes by that.
_ONLY_CHANGED = ("access.tls_cert", "access.tls_key", "access.tokens")


class Reloading:
    """Reads the settings of a daemon again when SIGHUP comes."""

    def __init__(self, core: Core, read: Callable[[], Settings]) -> None:
        """Heed the signal from now on, in the running loop; `run` does what it asks for."""
        self._core = core
        self._read = read
        self._asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)

    async def run(self) -> None:
        """Do it for ever: settings that cannot be used change nothing."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._core.calls.draining.is_set():
                continue
            self._core.notifier.reloading()
            try:
                await self._reload()
            except EnvdError as error:
                log.error("the settings stay as they were: %s", error.message)  # noqa: TRY400
            except Exception:
                log.exception("the settings were not read again")
            self._core.notifier.ready()

    async def _reload(self) -> None:
        wanted = await asyncio.to_thread(self._read)
        now, later = merged(self._core.settings, wanted)
        exposure.check(now)
        tiers.check(now, self._core.sandbox.tier)
        await self._core.change(now)
        log.info("the settings were read again; %d models have a name", len(now.served))
        if later:
            log.warning("the daemon takes these settings when it is restarted: %s", " ".join(later))


def merged(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Return *old* with what of *new* takes no restart, and the names of what does."""
    later, changed = [], dict[str, dict[str, Any]]()
    for row in config.fields():
        value = getattr(getattr(new, row.section), row.name)
        before = getattr(getattr(old, row.section), row.name)
        if value == before:
            continue
        if (name := f"{row.section}.{row.name}") in LIVE and (
            name not in _ONLY_CHANGED or (before and value)
        ):
            changed.setdefault(row.section, {})[row.name] = value
        else:
            later.append(name)
    sections: dict[str, Any] = {
        name: dataclasses.replace(getattr(old, name), **values) for name, values in changed.items()
    }
    return dataclasses.replace(old, **sections, served=new.served), later
