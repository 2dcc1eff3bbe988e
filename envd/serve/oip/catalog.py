"""What the Open Inference Protocol says of models, over gRPC or REST: names, versions, states."""

from __future__ import annotations

from envd.errors import ModelNotFoundError
from envd.model import signature
from envd.model.signature import Signature
from envd.serve.loading import Loading
from envd.serve.models import ReadyModels
from envd.serve.served import Entry, State

EXTENSIONS = ("model_repository", "model_configuration", "binary_tensor_data", "parameters")
PLATFORM = "mlflow"
_ONLY = "1"
_STATES = {State.READY: "READY", State.LOADING: "LOADING"}
_AWAITED = (State.UNLOADED, State.LOADING)


class Catalog:
    """The models that have a name: the protocol knows no others."""

    def __init__(self, models: ReadyModels, loading: Loading) -> None:
        """Look into *models*, and have *loading* load them."""
        self._models = models
        self._entries = models.entries
        self._loading = loading

    @property
    def is_ready(self) -> bool:
        """Whether no model is still being loaded that is to be loaded from the start."""
        return not any(one.state in _AWAITED for one in self._entries if one.served.preload)

    def find(self, name: str, version: str = "") -> Entry:
        """Return the model that is served by *name*, in that *version*, else the newest.

        Raises:
            ModelNotFoundError: there is none; a path or a URI is no name.
        """
        found = self._entries.versions(name) if name else []
        if not found:
            message = (
                f"no served model is called `{name}`; `envctl models list` shows those that are"
            )
            raise ModelNotFoundError(message, model=name)
        if not version:
            return found[-1]
        for one in found:
            if version_of(one) == version:
                return one
        versions = ", ".join(f"`{version_of(one)}`" for one in found[-5:])
        message = f"the model `{name}` has no version `{version}`; it has {versions}"
        raise ModelNotFoundError(message, model=name, version=version)

    def versions(self, entry: Entry) -> list[str]:
        """Return the versions of the model that *entry* is one of, the newest last."""
        return [version_of(one) for one in self._entries.versions(entry.served.name)]

    async def signature(self, entry: Entry) -> Signature:
        """Return what is said of the tensors of *entry*.

        Raises:
            EnvdError: it cannot be read.
        """
        return signature.of(await self._models.read(entry.served.uri))

    async def is_streamable(self, entry: Entry) -> bool:
        """Whether *entry* answers a stream item by item, as its `MLmodel` says.

        Raises:
            EnvdError: it cannot be read.
        """
        model = entry.model or await self._models.read(entry.served.uri)
        return model.is_streamable

    def index(self, *, only_ready: bool) -> list[Entry]:
        """Return all versions of all models, or those that are loaded."""
        return [
            version
            for name in dict.fromkeys(one.served.name for one in self._entries if one.served.name)
            for version in self._entries.versions(name)
            if not only_ready or version.state is State.READY
        ]

    async def load(self, name: str, *, is_admin: bool) -> None:
        """Load the newest version of the model *name*, once the folder has been read again.

        Raises:
            ModelNotFoundError: there is none.
            PermissionDeniedError: only an admin may do that with it.
            EnvdError: it cannot be loaded.
        """
        await self._loading.look_again(name)
        entry = self.find(name)
        self._loading.check_may(name, is_admin=is_admin)
        await self._loading.load(entry.address, "", wait=True)

    async def unload(self, name: str, *, is_admin: bool) -> None:
        """Stop the workers of all versions of the model *name*.

        Raises:
            ModelNotFoundError: there is none.
            PermissionDeniedError: only an admin may do that with it.
        """
        self.find(name)
        self._loading.check_may(name, is_admin=is_admin)
        for one in self._entries.versions(name):
            await self._loading.unload(one.address)


def version_of(entry: Entry) -> str:
    """Return the version of a model, which outside a repository folder is the only one."""
    return entry.version or _ONLY


def state_of(entry: Entry) -> tuple[str, str]:
    """Return the state of a model as Triton calls it, and why it is unavailable."""
    state = _STATES.get(entry.state, "UNAVAILABLE")
    if entry.failure:
        return state, entry.failure.message
    return state, "unloaded" if entry.state is State.UNLOADED else ""
