"""Where a verb works: the root, the settings, and the daemon if there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from envd.cli.engine import Engine
    from envd.config import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILES = (
    ("--tls-ca", "ENVD_TLS_CA", "The CAs of a daemon at HOST:PORT."),
    ("--tls-cert", "ENVD_TLS_CERT", "The certificate to show it."),
    ("--tls-key", "ENVD_TLS_KEY", "The key of that."),
    ("--token-file", "ENVD_TOKEN_FILE", "The token to send it."),
)


@dataclass(slots=True)
class Place:
    """What `--root`, `--config`, `--socket`, `--admin-socket` and `--conda-exe` say.

    The others say who asks a daemon over TCP, and whose certificate is good.
    """

    root: Path | None = None
    config: Path | None = None
    socket: str | None = None
    admin_socket: str | None = None
    conda_exe: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None

    def settings(self) -> Settings:
        """Return the settings.

        Raises:
            SettingsInvalidError: they cannot be used.
        """
        from envd import config  # noqa: PLC0415

        found = config.load(root=self.root, file=self.config)
        if self.conda_exe is None:
            return found
        exe = config.value("conda", "exe", self.conda_exe, "--conda-exe")
        return dataclasses.replace(found, conda=dataclasses.replace(found.conda, exe=exe))

    def file(self) -> Path | None:
        """Return the settings file, if there is one."""
        from envd import config  # noqa: PLC0415

        return config.file_of(self.config)

    def solve_with(self, conda_exe: str, env_manager: str) -> None:
        """Let *conda_exe* solve, where *env_manager*, or what the settings say, may need that.

        Raises:
            click.UsageError: nothing would come of it.
        """
        self.conda_exe = conda_exe
        settings = self.settings()
        if self._targets(settings):
            # Whoever may ask it must not make it run what they like.
            message = (
                "a daemon works here, and solves with what its own settings name: set `conda.exe` "
                "(ENVD_CONDA__EXE) where it is started, and leave out --conda-exe"
            )
            raise click.UsageError(message)
        if (env_manager or settings.resolve.env_manager) == "virtualenv":
            message = (
                "--conda-exe is for conda environments; give --env-manager conda (or auto) too"
            )
            raise click.UsageError(message)

    def engine(self) -> Engine:
        """Return what does the work: the daemon of the root, or this process."""
        settings = self.settings()
        if targets := self._targets(settings):
            return self.ask(settings, *targets)
        from envd.cli.local import Local  # noqa: PLC0415

        return Local(settings)

    def ask(self, settings: Settings, predict: str, admin: str | None) -> Engine:
        """Return the daemon at these two targets, a path or HOST:PORT each.

        Raises:
            UnreachableError: it does not answer.
        """
        import os  # noqa: PLC0415

        # What fails is said once, by envctl.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        from envd.cli.remote import Remote  # noqa: PLC0415

        return Remote(
            predict,
            admin,
            max_message_bytes=settings.daemon.max_message,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            token_file=self.token_file,
        )

    def _targets(self, settings: Settings) -> tuple[str, str | None] | None:
        import os  # noqa: PLC0415

        from envd import addresses  # noqa: PLC0415

        target = self.socket or os.environ.get("ENVD_SOCKET", "")
        if addresses.is_address(target):
            return target, self.admin_socket
        named = (
            addresses.sockets(settings.root, predict=self.socket, admin=self.admin_socket)
            if addresses.is_named(self.socket)
            else addresses.find(settings.root)
        )
        return (str(named.predict), str(named.admin)) if named else None


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
        click.option("--socket", help="The daemon's predict socket, or HOST:PORT.  "
                     "[env: ENVD_SOCKET]", expose_value=False, callback=_keep),
        click.option("--admin-socket", help="Its admin socket; else admin.sock beside the other.",
                     expose_value=False, callback=_keep),
        *(click.option(option, metavar="FILE", envvar=variable, help=f"{what}  [env: {variable}]",
                       expose_value=False, callback=_keep)
          for option, variable, what in _FILES),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def as_json(command: _Command) -> _Command:
    """Add `--json`."""
    return click.option("--json", "is_json", is_flag=True, help="Print JSON.")(command)
