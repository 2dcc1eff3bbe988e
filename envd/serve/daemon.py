"""The daemon: what answers predictions, and the services of its two sockets."""

from __future__ import annotations

from collections.abc import Callable

from grpc_health.v1 import health_pb2

from envd import addresses
from envd.access.roles import Role
from envd.addresses import Sockets
from envd.config import Settings
from envd.run.processes import Processes
from envd.serve.core import Core
from envd.serve.listeners import SERVICES, Listeners
from envd.serve.reloading import Reloading
from envd.serve.upkeep import Upkeep
from envd.spec import policy


class Daemon:
    """One daemon: it owns its root, and says where it listens."""

    def __init__(
        self,
        settings: Settings,
        sockets: Sockets,
        processes: Processes,
        read: Callable[[], Settings],
    ) -> None:
        """Put it together; *read* reads the settings anew. Call `run` in the loop."""
        self.core = Core(settings, processes)
        self._settings = settings
        self._read = read
        self._sockets = sockets
        self.grpc_address = ""

    async def run(self, on_ready: Callable[[], None]) -> bool:
        """Serve until a signal comes; *on_ready* is called when it listens.

        Return whether all went well. Connections stay open: what ends them is that the
        daemon does, and then clients know that they are to ask again.
        """
        core = self.core
        reloading = Reloading(core, self._read)
        await core.start()
        upkeep = Upkeep(self._settings, core.builds)
        self._listeners = listeners = Listeners(core, upkeep)
        access = self._settings.access
        await listeners.on_socket(self._sockets.predict, Role.BUILD, access.group)
        await listeners.on_socket(self._sockets.admin, Role.ADMIN, access.admin_group)
        if self._settings.daemon.grpc:
            self.grpc_address = await listeners.on_tcp()
        await core.serve_http()
        await core.entries.announce()
        profile = policy.of(self._settings.security).profile
        addresses.announce(
            self._settings.root,
            self._sockets,
            profile,
            http=core.http_url,
            grpc=self.grpc_address,
            sandbox=core.sandbox.document(),
        )
        for name in ("", *SERVICES):
            await core.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        on_ready()
        return await core.until_stopped(upkeep.run(), core.loading.preload(), reloading.run())
