"""Where a verb works: the root, the settings, and the daemon if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from envd.cli.engine import Engine
    from envd.config import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Place:
    """What `--root`, `--config`, `--socket` and `--admin-socket` say."""

    root: Path | None = None
    config: Path | None = None
    socket: str | None = None
    admin_socket: str | None = None

    def settings(self) -> Settings:
        """Return the settings.

        Raises:
            SettingsInvalidError: they cannot be used.
        """
        from envd import config  # noqa: PLC0415

        return config.load(root=self.root, file=self.config)

    def engine(self) -> Engine:
        """Return what does the work: the daemon of the root, or this process."""
        settings = self.settings()
        sockets = self._sockets(settings)
        if sockets:
            from envd.cli.remote import Remote  # noqa: PLC0415

            return Remote(*sockets)
        from envd.cli.local import Local  # noqa: PLC0415

        return Local(settings)

    def _sockets(self, settings: Settings) -> tuple[Path, Path] | None:
        from envd import addresses  # noqa: PLC0415

        named = (
            addresses.sockets(settings.root, predict=self.socket, admin=self.admin_socket)
            if addresses.is_named(self.socket)
            else addresses.find(settings.root)
        )
        return (named.predict, named.admin) if named else None


def _keep(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    place = ctx.find_root().ensure_object(Place)
    if value is not None and parameter.name:
        setattr(place, parameter.name, value)


def where(command: _Command) -> _Command:
    """Add the options that say where to work; they go before or after the verb."""
    options = [
        click.option("--root", type=click.Path(path_type=Path), help="Where everything is kept.",
                     expose_value=False, callback=_keep),
        click.option("--config", type=click.Path(path_type=Path), help="The settings file.",
                     expose_value=False, callback=_keep),
        click.option("--socket", help="The daemon's predict socket.  [env: ENVD_SOCKET]",
                     expose_value=False, callback=_keep),
        click.option("--admin-socket", help="Its admin socket; else admin.sock beside the other.",
                     expose_value=False, callback=_keep),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def as_json(command: _Command) -> _Command:
    """Add `--json`."""
    return click.option("--json", "is_json", is_flag=True, help="Print JSON.")(command)
