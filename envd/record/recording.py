"""Records a model: all is checked, written beside its place, loaded once, and moved there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envd import process
from envd.errors import RequestInvalidError
from envd.record import code, example
from envd.record.arguments import Arguments, asked
from envd.record.environment import CondaEnv
from envd.record.python_model import of as model_of
from envd.record.requirements import Given
from envd.record.writing import Recorded, Writing


def record(
    path: str | os.PathLike[str],
    *,
    python_model: Any,
    artifacts: Mapping[str, str | os.PathLike[str]] | None = None,
    pip_requirements: Given | None = None,
    extra_pip_requirements: Given | None = None,
    conda_env: CondaEnv | None = None,
    code_paths: Sequence[str | os.PathLike[str]] = (),
    infer_code_paths: bool = False,
    input_example: Any = None,
    signature: Any = None,
    metadata: Mapping[str, Any] | None = None,
    model_config: Mapping[str, Any] | None = None,
    allow_secrets: bool = False,
    check: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> Recorded:
    """Write *python_model* as a model directory *path*, whole or not at all.

    It is an object with a `predict`, of MLflow's `PythonModel` or any other class; a function
    of its input; or a script, `"SCRIPT.py:NAME"` or one that calls `mlflow.models.set_model`.
    The arguments are those of `mlflow.pyfunc.save_model`, and mean what they mean there, but

    - requirements that nobody gives are found by running the model (`envd.infer`); each may
      be a list or a file, in which `-r` and `-c` are followed;
    - `code_paths` keep the names that modules are imported by, `src/utils.py` is `src.utils`;
    - `infer_code_paths` follows what is imported anywhere in the code, wherever it lies, and
      of installed code what is being worked on (`pip install -e`);
    - classes and functions of `__main__` are taken along;
    - with `check`, the model is loaded as it will be, with nothing of this process, and asked
      for the example: what is missing is an error here and not where it is served;
    - what looks like a secret is refused, unless `allow_secrets`.

    *on_step* is told what is done.

    Raises:
        RequestInvalidError: an argument cannot be used, or there would be secrets in the model.
        ImportFailedError: a module is not in the model, nor installed.
        EnvdError: the model does not load or answer.
    """
    whole, extra = asked(pip_requirements, extra_pip_requirements, conda_env)
    given = Arguments(
        python_model=model_of(python_model),
        whole=whole,
        extra=extra,
        artifacts=dict(artifacts or {}),
        placed=code.placed(code_paths),
        is_followed=infer_code_paths,
        example=None if input_example is None else example.of(input_example),
        signature=signature,
        metadata=metadata,
        config=model_config,
        allow_secrets=allow_secrets,
        check=check,
        on_step=on_step,
    )
    with _place(Path(path)) as folder:
        return Writing(folder, Path(path).absolute(), given).done()


@contextmanager
def _place(path: Path) -> Iterator[Path]:
    """Yield a folder beside *path* that becomes it, if nothing goes wrong.

    Raises:
        RequestInvalidError: there is something already, or there cannot be.
    """
    must_be_free(path)
    target = path.absolute()
    # What is loaded from there tells its real place.
    name = f"{_beside(target)}{process.stamp()}.{secrets.token_hex(4)}"
    folder = target.parent.resolve() / name
    try:
        folder.mkdir(parents=True)
        remove_left(target)
        yield folder
        folder.rename(target)
    except OSError as error:
        message = f"the model cannot be written to `{path}`: {error}"
        raise RequestInvalidError(message, path=path) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def must_be_free(path: Path) -> None:
    """See that nothing is in the place of a model at *path*.

    Raises:
        RequestInvalidError: there is something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        message = f"`{path}` is there already; give another, or remove it"
        raise RequestInvalidError(message, path=path)


def _beside(target: Path) -> str:
    return f".{target.name}.recording."


def remove_left(target: Path) -> None:
    """Remove what recordings of the model *target* left beside it that were killed."""
    for one in target.parent.iterdir() if target.parent.is_dir() else ():
        stamp = one.name.removeprefix(_beside(target))
        if stamp != one.name and process.is_stamp_of_the_dead(stamp):
            shutil.rmtree(one, ignore_errors=True)
