"""The directory an image is built from: its Dockerfile, the models with their locks, wheels."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from envd import durable
from envd.errors import ModelInvalidError, RequestInvalidError
from envd.image import dockerfile
from envd.image.dockerfile import Image
from envd.model import files

# A lock of the model's own counts, and goes with it.
_LOCKS = ("pylock.toml", "uv.lock", "conda-lock.yml")


@dataclass(frozen=True, slots=True)
class Packed:
    """A model for an image: its name there, where it lies, its lock's name and text."""

    name: str
    path: Path
    lock: tuple[str, str]


def write(
    target: Path,
    image: Image,
    models: Sequence[Packed],
    wheels: Path | None,
    *,
    is_passing: bool = False,
) -> None:
    """Write the context of *image* to *target*, which appears when it is whole.

    One that is only passing has the files of the models themselves, which may be gigabytes, and
    no copies of them.

    Raises:
        RequestInvalidError: *target* is there already, or *wheels* has no wheel.
        ModelInvalidError: a model has a link that leads out of it, or what is no file.
    """
    must_be_new(target)
    with _appearing(target) as folder:
        durable.write_text(folder / "Dockerfile", dockerfile.text(image))
        if len(models) > 1:
            durable.write_text(folder / "envd.toml", dockerfile.settings(image))
        if wheels:
            _copy_wheels(wheels, folder / "wheels")
        for one in models:
            copied = folder / "models" / one.name
            _copy_model(one.path, copied, _linked if is_passing else shutil.copy2)
            if not any((copied / name).exists() for name in _LOCKS):
                name, text = one.lock
                durable.write_text(copied / name, text)


def must_be_new(target: Path) -> None:
    """See that nothing is at *target*.

    Raises:
        RequestInvalidError: something is.
    """
    if os.path.lexists(target):
        message = f"`{target}` is there already; remove it, or give another directory"
        raise RequestInvalidError(message, path=target)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy_wheels(source: Path, target: Path) -> None:
    wheels = sorted(source.glob("*.whl"))
    if not any(one.name.startswith("envd_daemon-") for one in wheels):
        message = f"there is no wheel of envd-daemon in `{source}`; give the directory that has it"
        raise RequestInvalidError(message, path=source)
    target.mkdir()
    for one in wheels:
        shutil.copyfile(one, target / one.name)


def _copy_model(model: Path, target: Path, copy: Callable[[str, str], object]) -> None:
    """Copy *model*, links within it as what they lead to."""
    _check(model)
    try:
        shutil.copytree(model, target, copy_function=copy)
    except shutil.Error as error:
        _, _, why = error.args[0][0]
        message = f"the model `{model}` cannot be copied: {why}"
        raise ModelInvalidError(message, model=model) from error


def _check(model: Path) -> None:
    """See that all of *model* lies in it.

    Raises:
        ModelInvalidError: a link leads out of it, or to a directory with such links in it,
            which there would be no end of.
    """
    for path in filter(Path.is_symlink, _below(model)):
        inner = str(path.relative_to(model))
        if any(one.is_symlink() and one.is_dir() for one in _below(files.inside(model, inner))):
            message = (
                f"the link `{inner}` of the model `{model}` leads to a directory in which "
                "there are links to directories; copy what they lead to"
            )
            raise ModelInvalidError(message, model=model, path=inner)


def _below(path: Path) -> Iterator[Path]:
    """Yield all that lies in *path*, without following a link."""
    for folder, folders, names in os.walk(path):
        yield from (Path(folder, name) for name in (*folders, *names))


def _linked(source: str, target: str) -> str:
    """Give the file *source* the name *target* as well."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy(source, target)
    return target


def secret(variables: Mapping[str, str]) -> str:
    """Return *variables* as the Dockerfile's steps read them."""
    import shlex  # noqa: PLC0415

    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
