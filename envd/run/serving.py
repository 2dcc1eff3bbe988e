"""How one model is run: what its workers are given besides the model and its environment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from envd import secrets
from envd.access import private_file
from envd.config import Settings
from envd.errors import EnvdError
from envd.events import Note
from envd.model import Model
from envd.run import env_file
from envd.sandbox.cgroups import NO_LIMITS, Limits
from envd.settings.served import Served
from envd.settings.values import CountOrAuto

_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
# A shorter value is found in many a message that has nothing to do with it.
_SHORTEST_SECRET = 6
_MAX_KNOWN = 10_000
_Value = TypeVar("_Value")
_UNNAMED = Served("")
_ADVICE = "give it in `env` or `env_file` of its table `[models.NAME]`"


@dataclass(frozen=True, slots=True)
class Serving:
    """How one model is to be run: what is said of it, else of all.

    `env` are variables its workers get, the GPUs it sees among them, and `model_config` is
    JSON that its loader gets. As many workers as `workers` says are kept while it is asked,
    `auto` as many as its requests keep busy; for ever if it is to `stay`. `queue` requests
    may wait, `concurrency` be with one worker; of these a worker runs up to `max_batch` as
    one if `batch`. `template` says whether its workers may be forked. A worker may use the
    `network` where that is said of it, has `limits`, and a request `time_limit` seconds.

    `names` are those it was asked for by, which make no other workers, and `missing` are
    variables that it reads and nobody gives.
    """

    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    workers: CountOrAuto = 1
    batch: bool = False
    max_batch: int = 64
    template: bool = True
    model_config: str = field(default="", repr=False)
    queue: int = 1000
    concurrency: int = 16
    stay: bool = False
    network: bool | None = None
    limits: Limits = NO_LIMITS
    time_limit: float = math.inf
    missing: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), compare=False)

    def replaces(self, other: Serving) -> bool:
        """Whether *other* is how the same model was run before its variables changed."""
        is_named = bool(self.names) and self.names == other.names
        return self == other or (is_named and self.model_config == other.model_config)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What an answer of the model says of it."""
        if not self.missing:
            return ()
        names = ", ".join(self.missing)
        message = f"the model reads {_quoted(self.missing)}, which nobody gives it; {_ADVICE}"
        return (Note("ENV_VARS_MISSING", message, names),)

    def explained(self, error: EnvdError) -> EnvdError:
        """Return *error*, which a worker raised, with what is missing and without secrets."""
        message = error.message
        about: dict[str, object] = dict(error.metadata)
        if self.missing and (error.reason == "MODEL_RAISED" or about.get("stage") == "load"):
            message += f"; it reads {_quoted(self.missing)}, which nobody gives it: {_ADVICE}"
            about["env_vars_missing"] = ",".join(self.missing)
        told = {key: value if key == "model" else self._cut(str(value))
                for key, value in about.items()}  # fmt: skip
        explained = type(error)(self._cut(message), **told)
        explained.retry_after_s = error.retry_after_s
        return explained

    def _cut(self, text: str) -> str:
        """Return *text* without the values of variables."""
        given = [one for _, one in self.env if len(one) >= _SHORTEST_SECRET]
        return secrets.without(text, given)


class Servings:
    """Makes them, and remembers them while nothing changes."""

    def __init__(self, settings: Settings) -> None:
        """Take from *settings* what is not said of single models."""
        self._workers = settings.workers
        # With the digest of the model that each is for: a changed one takes its place.
        self._known: dict[tuple[object, ...], tuple[str, Serving]] = {}

    def of(
        self,
        model: Model,
        served: Served | None = None,
        model_config: Mapping[str, object] | None = None,
    ) -> Serving:
        """Return how to run *model*, *served* or not, with a *model_config* for this call.

        A file of variables is read again when it has changed.

        Raises:
            SettingsInvalidError: it cannot be read, or others can read it.
        """
        one = served or _UNNAMED
        changed = json.dumps(model_config, sort_keys=True) if model_config else ""
        identity = private_file.identity(one.env_file) if one.env_file else ()
        key = (model.path, one, changed, identity)
        digest, found = self._known.get(key, ("", None))
        if identity is not None and found and digest == model.digest:
            return found
        if len(self._known) >= _MAX_KNOWN:
            # The configuration is the caller's: it must not be kept for ever.
            self._known.clear()
        given = env_file.read(one.env_file) if one.env_file else {}
        config = json.loads(one.model_config or "{}") | dict(model_config or {})
        found = self._made(model, one, given, config)
        self._known[key] = model.digest, found
        return found

    def _made(
        self, model: Model, served: Served, given: dict[str, str], config: dict[str, object]
    ) -> Serving:
        workers = self._workers
        gpus = {} if served.gpu is None else dict.fromkeys(_GPU_VARIABLES, str(served.gpu))
        env = given | dict(served.env) | gpus
        return Serving(
            env=tuple(sorted(env.items())),
            workers=served.workers or workers.per_model,
            batch=model.batch if served.batch is None else served.batch,
            max_batch=served.max_batch or workers.max_batch,
            template=workers.template if served.template is None else served.template,
            model_config=json.dumps(config, sort_keys=True) if config else "",
            queue=served.queue or workers.queue,
            concurrency=served.concurrency or workers.concurrency,
            stay=served.preload,
            network=served.network,
            limits=Limits(
                memory=_first(served.memory_limit, workers.memory_limit),
                cpus=_first(served.cpu_limit, workers.cpu_limit),
                processes=_first(served.process_limit, workers.process_limit),
            ),
            time_limit=_first(served.time_limit, workers.time_limit),
            missing=tuple(name for name in model.env_vars if name not in env),
            names=(served.name,) if served.name else (),
        )


def _first(own: _Value | None, of_all: _Value) -> _Value:
    return of_all if own is None else own


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
