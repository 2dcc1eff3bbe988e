"""Finds out, for a daemon, what keeps models to themselves: it may not fork to try it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from envd.config import Settings
from envd.run.processes import Processes
from envd.sandbox import tiers
from envd.sandbox.tiers import OPEN, Sandbox


async def tried(settings: Settings, processes: Processes, log: Path) -> Sandbox:
    """Return what is in force by *settings*, having tried what there is in a process of its own.

    Raises:
        SettingsInvalidError: it is lower than they want.
    """
    if not tiers.is_wanted(settings):
        return tiers.know(settings, OPEN)
    reading, writing = os.pipe()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            process = await processes.start(
                tiers.probe_argv(settings, "{0}"), env={}, cwd=Path("/"), log=log, given=[writing]
            )
        finally:
            os.close(writing)
        # It answers in one line, which a pipe holds.
        await asyncio.shield(process.exited)
        answer = tiers.parsed(os.read(reading, 1 << 16))
        return tiers.know(settings, tiers.judge(settings, answer))
    finally:
        os.close(reading)
