"""What a wheel that comes from no index says it depends on.

uv follows the URLs in the metadata of such a wheel, wherever they lead: to a directory of
this machine, whose `setup.py` it then runs.
"""

from __future__ import annotations

import email
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from envd.errors import InstallFailedError, SolveFailedError
from envd.model import files
from envd.model.texts import shown

_MAX_BYTES = 1 << 20
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
# What `zipfile` raises of an archive that is broken, one for each place where it is.
_BROKEN = (
    OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip


def check_wheel(wheel: Path, title: str) -> None:
    """See that the file *wheel* asks for packages of indexes only; *title* is what to call it.

    Raises:
        SolveFailedError: it asks for one of a URL.
        InstallFailedError: it is no wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            texts = list(_texts(archive))
    except _BROKEN as error:
        files.raise_shortage(error)
        message = f"`{title}` is not a wheel: {error}"
        raise InstallFailedError(message, package=title) from error
    for text in texts:
        check(text, title)


def _texts(archive: zipfile.ZipFile) -> Iterator[str]:
    for info in archive.infolist():
        if _METADATA.fullmatch(info.filename):
            if info.file_size > _MAX_BYTES:
                message = f"its metadata is over {_MAX_BYTES} bytes"
                raise ValueError(message)
            yield archive.read(info).decode(errors="replace")


def check(metadata: str, title: str) -> None:
    """See that *metadata*, as it stands in a wheel, asks for packages of indexes only.

    Raises:
        SolveFailedError: it asks for one of a URL.
    """
    for asked in email.message_from_string(metadata).get_all("Requires-Dist", []):
        # Nothing else before a marker holds an `@` (PEP 508).
        if "@" in asked.partition(";")[0]:
            message = (
                f"`{title}` depends on `{shown(asked)}`, which is no package of an index; "
                "a package of the model's own may only depend on such"
            )
            raise SolveFailedError(message, package=title)
