"""What `envctl dockerfile` and `envctl build-image` have in common: an image of some models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envd.cli import names

if TYPE_CHECKING:
    from envd.cli.engine import Document, Engine
    from envd.cli.place import Place
    from envd.config import Settings
    from envd.image.context import Packed
    from envd.image.dockerfile import Image

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Plan:
    """An image, its models, and the variables that only those who build it may know."""

    image: Image
    models: tuple[Packed, ...]
    wheels: Path | None
    secret: dict[str, str]

    def document(self) -> Document:
        """Return it as JSON values."""
        models = [{"name": one.name, "model": names.shown(str(one.path))} for one in self.models]
        return {"base": self.image.base, "models": models}


def options(command: _Command) -> _Command:
    """Add the options that say what is in the image."""
    found = [
        click.option("-m", "--model", "models", type=names.MODEL, required=True, multiple=True,
                     help="A model: directory, URI or served name; several times for several."),
        click.option("--base", metavar="IMAGE",
                     help="What it is built on; Debian's or like it, with a Python of 3.11 or "
                     "later.  [default: python:3.N-slim, by the models]"),
        click.option("--apt", "debian", multiple=True, metavar="PACKAGE",
                     help="A package of Debian's that the models need, such as libgomp1."),
        click.option("--wheels", type=click.Path(exists=True, file_okay=False, path_type=Path),
                     metavar="DIR", help="Where envd's own wheels lie, for no index has them."),
    ]  # fmt: skip
    for option in reversed(found):
        command = option(command)
    return command


def plan(
    place: Place,
    models: tuple[str, ...],
    base: str | None,
    debian: tuple[str, ...],
    wheels: Path | None,
) -> Plan:
    """Lock *models* and return what their image is made of.

    Raises:
        EnvdError: a model cannot be read or locked, or two have the same name.
    """
    import envd  # noqa: PLC0415
    from envd.cli.progress import Progress  # noqa: PLC0415
    from envd.image import dockerfile  # noqa: PLC0415

    settings, engine = place.settings(), place.engine()
    asked = list(dict.fromkeys(map(names.model, models)))
    specs = [engine.explain(_order(one))["spec"] for one in asked]
    with Progress() as progress:
        packed = tuple(_packed(one, settings, engine, progress) for one in asked)
    _check_names(packed)
    image = dockerfile.Image(
        tuple(one.name for one in packed),
        base or dockerfile.base_for([one["python"]["version"] for one in specs]),
        envd.__version__,
        debian,
        ("conda",) if any(one["manager"] == "conda" for one in specs) else (),
        tuple((_variables(settings, "resolve") | _profile(settings)).items()),
        has_wheels=wheels is not None,
    )
    image.check()
    return Plan(image, packed, wheels, _secret(settings))


@contextmanager
def secret_file(plan: Plan) -> Iterator[Path | None]:
    """Have a file, closed to others, with what is secret; None if nothing is."""
    import os  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    from envd.image import context  # noqa: PLC0415

    if not plan.secret:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="envctl-") as folder:
        file = Path(folder, "envd.env")
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(context.secret(plan.secret))
        yield file


def _order(model: str) -> Any:
    from envd.cli.engine import Order  # noqa: PLC0415

    return Order(model)


def _packed(model: str, settings: Settings, engine: Engine, progress: Any) -> Packed:
    from envd.image.context import Packed  # noqa: PLC0415
    from envd.model import location, naming  # noqa: PLC0415

    served = naming.find(model, settings.served)
    name = served.name if served else naming.likely(model)
    lock = engine.lock(_order(model), (), progress)
    return Packed(name, location.locate(model, settings), lock)


def _check_names(packed: tuple[Packed, ...]) -> None:
    from envd.errors import RequestInvalidError  # noqa: PLC0415

    seen: dict[str, Packed] = {}
    for one in packed:
        other = seen.setdefault(one.name, one)
        if other is not one:
            message = (
                f"`{other.path}` and `{one.path}` would both be called `{one.name}` in the image; "
                "give one of them a name in the settings (`[models]`), and ask by that"
            )
            raise RequestInvalidError(message, name=one.name)


def _profile(settings: Settings) -> dict[str, str]:
    profile = settings.security.profile
    return {} if profile == "auto" else {"ENVD_SECURITY__PROFILE": profile}


def _secret(settings: Settings) -> dict[str, str]:
    """Return where packages come from, for envd and for pip, which installs envd itself.

    Directories of this machine are nowhere in an image.
    """
    from envd.settings import values  # noqa: PLC0415

    links = tuple(one for one in settings.index.find_links if not one.startswith("/"))
    index = dataclasses.replace(settings.index, find_links=links)
    settings = dataclasses.replace(settings, index=index)
    found = _variables(settings, "index") | _variables(settings, "conda")
    given = map(values.write, settings.index.urls)
    urls = [one.partition("=")[2] if _is_named(one) else one for one in given]
    if urls:
        found |= {"PIP_INDEX_URL": urls[0], "PIP_EXTRA_INDEX_URL": " ".join(urls[1:])}
    return found


def _is_named(url: str) -> bool:
    return "=" in url.partition("://")[0]


def _variables(settings: Settings, section: str) -> dict[str, str]:
    """Return the variables that set what *settings* have in *section* and are no defaults."""
    from envd import config  # noqa: PLC0415
    from envd.settings import values  # noqa: PLC0415

    rows = [row for row in config.fields() if row.section == section]
    given = {row: getattr(getattr(settings, section), row.name) for row in rows}
    return {row.variable: values.write(one) for row, one in given.items() if one != row.default}
