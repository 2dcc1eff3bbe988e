"""How one model is to be run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Serving:
    """How one model is to be run: what is said of it, else of all.

    `env` are variables its workers get, `model_config` is JSON that its loader gets. As
    many workers as `workers` says are kept while it is asked, `auto` as many as its
    requests keep busy. `queue` requests may wait, `concurrency` be with one worker; of
    these a worker runs up to `max_batch` as one if `batch`. `template` says whether its
    workers may be forked.
    """

    env: tuple[tuple[str, str], ...] = ()
    workers: int | Literal["auto"] = 1
    batch: bool = False
    max_batch: int = 64
    template: bool = True
    model_config: str = ""
    queue: int = 1000
    concurrency: int = 16

    @property
    def digest(self) -> str:
        """What tells two of them apart, and gives nothing of them away."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
