"""The Dockerfile of an image: envd, the environments of some models, the models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from envd.errors import RequestInvalidError

SECRET = "envd"  # noqa: S105
PORT, USER = 8080, "10001:10001"
# Those with an official image that envd runs on.
_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_PLAIN = "3.12"
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9./:@_-]{0,254}", re.ASCII)
# https://www.debian.org/doc/debian-policy/ch-controlfields.html#source
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+", re.ASCII)
_HEALTH = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/ping', timeout=5)"
_HEAD = """\
# Written by envctl. Where packages do not come from PyPI: `--secret id={secret},src=FILE`, a FILE
# of lines such as ENVD_INDEX__URLS='https://user:password@host/simple' and PIP_INDEX_URL='...'.
# It is no part of the image.
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What an image is made of.

    `models` are the names of what lies in `models/` of the context, `debian` the packages the
    base lacks, `extras` those of envd's own, `variables` what both building and serving are
    told; `has_wheels` says that envd comes from `wheels/` of the context and not from an index.
    """

    models: tuple[str, ...]
    base: str
    version: str
    debian: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    has_wheels: bool = False

    def check(self) -> None:
        """See that nothing in it is an instruction of its own.

        Raises:
            RequestInvalidError: the base is no image, or a package has no name Debian's have.
        """
        if not _REFERENCE.fullmatch(self.base):
            message = f"{self.base!r} is no image; give one as in `python:3.12-slim`"
            raise RequestInvalidError(message, base=self.base)
        for name in self.debian:
            if not _PACKAGE.fullmatch(name):
                message = f"{name!r} is no package of Debian's; give one as in `libgomp1`"
                raise RequestInvalidError(message, package=name)


def base_for(pythons: Sequence[str]) -> str:
    """Return an image that has one of *pythons*, as in `3.12.4`, and that envd runs on.

    Of several it is the newest; what it lacks is downloaded while the environments are built.
    """
    minors = {".".join(one.split(".")[:2]) for one in pythons}
    fitting = [one for one in _PYTHONS if one in minors]
    return f"python:{fitting[-1] if fitting else _PLAIN}-slim"


def text(image: Image) -> str:
    """Return the Dockerfile of *image*."""
    return _HEAD.format(secret=SECRET) + "\n".join(_lines(image)) + "\n"


def _lines(image: Image) -> Iterator[str]:
    yield f"FROM {image.base} AS base"
    if image.debian:
        yield _run(
            "apt-get update",
            f"apt-get install -y --no-install-recommends {' '.join(image.debian)}",
            "rm -rf /var/lib/apt/lists/*",
        )
    yield _env(
        {
            "ENVD_ROOT": "/var/lib/envd",
            "HOME": "/var/lib/envd",
            "PATH": "/opt/envd/bin:/usr/local/bin:/usr/bin:/bin",
            # Who reaches a container is up to whoever runs it, and it keeps in what runs there.
            "ENVD_ACCESS__OPEN": "true",
            "ENVD_SECURITY__PROFILE": "dev",
            **dict(image.variables),
        }
    )
    yield from _building(image)
    yield from _serving(image)


def _building(image: Image) -> Iterator[str]:
    yield from ("", "FROM base AS envd")
    links = ""
    if image.has_wheels:
        yield "COPY wheels /wheels"
        links = "--find-links /wheels "
    extras = f"[{','.join(image.extras)}]" if image.extras else ""
    yield _run_with_secret(
        "python3 -m venv /opt/envd",
        "/opt/envd/bin/pip install --no-cache-dir --disable-pip-version-check "
        f"{links}'envd-daemon{extras}=={image.version}'",
    )
    yield from ("", "FROM envd AS environments", "COPY models /models")
    # What installers downloaded is not needed again, and a model may be closed to others.
    yield _run_with_secret(
        "envctl build -m /models", "rm -rf /var/lib/envd/cache", "chmod -R a+rX /models"
    )


def _serving(image: Image) -> Iterator[str]:
    yield from ("", "FROM base")
    yield "COPY --from=envd /opt/envd /opt/envd"
    yield f"COPY --from=environments --chown={USER} /var/lib/envd /var/lib/envd"
    yield "COPY --from=environments /models /models"
    if len(image.models) > 1:
        yield "COPY envd.toml /etc/envd/envd.toml"
    yield from (f"USER {USER}", f"EXPOSE {PORT}")
    yield f"HEALTHCHECK --start-period=60s CMD {json.dumps(['python3', '-c', _HEALTH])}"
    yield f"CMD {json.dumps(_command(image))}"


def settings(image: Image) -> str:
    """Return the settings file of an image with several models."""
    tables = [
        f"[models.{json.dumps(name, ensure_ascii=False)}]\n"
        f"uri = {json.dumps(f'/models/{name}', ensure_ascii=False)}\npreload = true\n"
        for name in image.models
    ]
    return "\n".join([f'[http]\nlisten = "0.0.0.0:{PORT}"\n', *tables])


def _command(image: Image) -> list[str]:
    if len(image.models) > 1:
        return ["envd", "--config", "/etc/envd/envd.toml"]
    where = ["-h", "0.0.0.0", "-p", str(PORT)]  # noqa: S104
    return ["envctl", "serve", "-m", f"/models/{image.models[0]}", *where]


def _env(variables: Mapping[str, str]) -> str:
    # Written as JSON is, a value may have spaces, and `$` means itself.
    pairs = (
        f"{name}={json.dumps(value).replace('$', chr(92) + '$')}"
        for name, value in variables.items()
    )
    return "ENV " + " \\\n    ".join(pairs)


def _run(*commands: str) -> str:
    return "RUN " + " && \\\n    ".join(commands)


def _run_with_secret(*commands: str) -> str:
    file = f"/run/secrets/{SECRET}"
    read = f"set -a; if [ -f {file} ]; then . {file}; fi; set +a"
    mount = f"RUN --mount=type=secret,id={SECRET},target={file}"
    return f"{mount} \\\n    {read}; \\\n    " + " && \\\n    ".join(commands)
