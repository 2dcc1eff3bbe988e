"""Which models callers may name by a path or a URI, and that no link leads to others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from envd_client import Client
from envd_client import errors as client_errors
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services

from envd import config, errors
from envd.access import exposure
from envd.model.roots import Held, Roots, unmoved
from envd.run.pool import Pool
from envd.sandbox import tiers
from envd.settings.sections import Security
from tests.conftest import Daemon, launch, stop, wait_for
from tests.stage import Stage, answer, request
from tests.tiny import Tiny

Denied = client_errors.PermissionDeniedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Roots `one` and `two`, a folder that is none, and links between them."""
    for name in ("one/a/b", "one/a/c", "two/d", "outside/e", "onerous"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one/file").touch()
    for name, to in {
        "one/latest": "a/b", "one/absolute": tmp_path / "one/a", "one/second": "../two/d",
        "one/out": "../outside", "one/a/up": "../../outside/e", "one/loop": "loop",
        "one/nowhere": "missing", "link": "one",
    }.items():  # fmt: skip
        (tmp_path / name).symlink_to(to)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("one/a/b", "one/a/b"),
        ("one/a/b/", "one/a/b"),
        ("one/a/../a/./b", "one/a/b"),
        ("one", "one"),
        ("one/latest", "one/a/b"),
        ("one/absolute/c", "one/a/c"),
        ("one/second", "two/d"),
        ("link/a/b", errors.PermissionDeniedError),
        ("outside/e", errors.PermissionDeniedError),
        ("outside/missing", errors.PermissionDeniedError),
        ("onerous", errors.PermissionDeniedError),
        ("one/../outside/e", errors.PermissionDeniedError),
        ("one/out", errors.PermissionDeniedError),
        ("one/out/e", errors.PermissionDeniedError),
        ("one/out/missing", errors.PermissionDeniedError),
        ("one/a/up", errors.PermissionDeniedError),
        ("one/missing", errors.ModelNotFoundError),
        ("one/nowhere", errors.ModelNotFoundError),
        ("one/file", errors.ModelNotFoundError),
        ("one/loop", errors.EnvdError),
    ],
)
def test_a_path_leads_below_a_root_or_nowhere(
    folder: Path, path: str, expected: str | type[errors.EnvdError]
) -> None:
    roots = Roots([f"{folder}/one", f"{folder}/two"], anywhere=False)

    def look() -> Path:
        found = roots.judge(f"{folder}/{path}")
        assert found is not None
        return roots.held(found).path

    if isinstance(expected, str):
        assert look() == folder / expected
        return
    with pytest.raises(expected) as caught:
        look()
    assert str(folder / "outside" / "e") not in caught.value.message.replace(f"{folder}/{path}", "")


def test_a_root_may_itself_be_a_link(folder: Path) -> None:
    roots = Roots([f"{folder}/link"], anywhere=True)

    for path in (folder / "link" / "a" / "b", folder / "one" / "a" / "b"):
        assert roots.held(path).path == folder / "one" / "a" / "b"


@pytest.mark.parametrize(
    ("uri", "root", "is_allowed"),
    [
        ("models:/fraud/3", "models:/", True),
        ("models:/fraud/3", "models:/fraud", True),
        ("models:/fraud@champion", "models:/fraud", True),
        ("MODELS:/fraud/3", "models:/fraud", True),
        ("models:/fraudulent/3", "models:/fraud", False),
        ("models:/fraud/../other/3", "models:/fraud", False),
        ("models:/fraud/%2e%2e/other/3", "models:/fraud", False),
        ("models://profile/fraud/3", "models:/", False),
        ("runs:/0123/model", "models:/", False),
        ("s3://bucket/a/model", "s3://bucket/a", True),
        ("s3://bucket/ab", "s3://bucket/a", False),
        ("s3://bucket@evil/a", "s3://bucket", False),
        ("s3://bucket.evil/a", "s3://bucket", False),
        ("http://host/model", "s3://bucket", False),
        ("s3://bucket/a/my model;1?x", "s3://bucket/a", True),
        # As urllib reads it, and those who decode twice, and servers that have parameters.
        ("http://host/a/.\t./b", "http://host/a", False),
        ("http://host/a/\n../b", "http://host/a", False),
        ("http://host/a/.%09./b", "http://host/a", False),
        ("http://host/a/%252e%252e/b", "http://host/a", False),
        ("http://host/a/..;x/b", "http://host/a", False),
        ("file:///srv/models/a", "/srv/models", True),
        ("FILE:/srv/models/a", "/srv/models", True),
        ("file:///srv/models/%2e%2e/a", "/srv/models", False),
        ("file:///srv/models", "file:///srv", True),
        ("/srv/models", "file:///srv", True),
        ("/srv/models", "models:/", False),
        ("relative", "/", False),
        ("/srv", "/", True),
    ],
)
def test_a_uri_begins_as_a_root_does(uri: str, root: str, is_allowed: object) -> None:
    roots = Roots([root], anywhere=False)

    if is_allowed:
        roots.judge(uri)
        return
    with pytest.raises(errors.PermissionDeniedError, match=r"models\.roots"):
        roots.judge(uri)


def test_a_password_in_a_uri_is_not_told_to_who_may_not_name_it() -> None:
    with pytest.raises(errors.PermissionDeniedError) as caught:
        Roots([], anywhere=False).judge("https://me:secret@host/model")

    assert "secret" not in str(caught.value.document())


@pytest.fixture
def roots(folder: Path) -> Roots:
    time.sleep(0.06)
    return Roots([str(folder / "one")], anywhere=False)


def moving(
    roots: Roots, folder: Path, times: int, result: errors.EnvdError | None = None
) -> tuple[object, list[str]]:
    """Read `one/a/b` as it is swapped and put back, the first *times* it is read."""
    path, read = folder / "one" / "a", list[str]()

    async def act(found: Path) -> str:
        if len(read) < times:
            path.rename(folder / "one" / "aside")
            path.symlink_to(folder / "outside")
            path.unlink()
            (folder / "one" / "aside").rename(path)
        read.append(str(found))
        if result:
            raise result
        return f"read {len(read)}"

    return asyncio.run(unmoved(lambda: roots.held(path / "b"), act)), read


def test_what_was_read_while_a_name_meant_something_else_is_read_again(
    roots: Roots, folder: Path
) -> None:
    found, read = moving(roots, folder, 2)

    assert found == "read 3"
    assert read == [str(folder / "one" / "a" / "b")] * 3


def test_what_never_stands_still_is_not_told_of(roots: Roots, folder: Path) -> None:
    with pytest.raises(errors.ModelMovedError):
        moving(roots, folder, 1000, errors.ModelInvalidError("the secret of another file"))


def test_an_error_that_is_the_models_own_is_told(roots: Roots, folder: Path) -> None:
    with pytest.raises(errors.ModelInvalidError):
        moving(roots, folder, 1, errors.ModelInvalidError("it is wrong"))


def test_a_directory_in_the_place_of_another_is_another(roots: Roots, folder: Path) -> None:
    before = roots.held(folder / "one" / "a" / "c")
    (folder / "one" / "a" / "c").rmdir()
    (folder / "one" / "a" / "c").mkdir()

    after = roots.held(folder / "one" / "a" / "c")

    assert isinstance(before, Held)
    assert before != after
    assert not after.is_settled


# with a daemon


@dataclass
class Place:
    """A daemon of strangers, with models where they may name them and where not."""

    daemon: Daemon
    inside: Path
    outside: Path
    named: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("roots")
    inside, outside, named = (
        tiny.model(folder / name, body=f"        return '{Path(name).name}'")
        for name in ("models/inside", "outside", "named")
    )
    (linked := inside.parent / "linked").symlink_to(named)
    (folder / "envd.toml").write_text(f"""
        [models]
        roots = ["{inside.parent}"]
        named = "{named}"
        linked = "{linked}"
        """)
    settings = tiny.settings | {
        "ENVD_CONFIG": str(folder / "envd.toml"),
        "ENVD_SECURITY__PROFILE": "standard",
    }
    daemon = launch(folder / "root", home, **settings)
    yield Place(daemon, inside, outside, named)
    stop(daemon)


def test_callers_may_name_what_lies_below_a_root_or_has_a_name(place: Place) -> None:
    with place.daemon.client() as client:
        found = [
            client.predict(model, {"inputs": 1}).predictions
            for model in (place.inside, place.inside.as_uri(), "named", place.named)
        ]

    assert found == ["inside", "inside", "named", "named"]


def test_a_name_may_lead_by_a_link_out_of_the_roots(place: Place) -> None:
    with place.daemon.client() as client:
        assert client.predict("linked", {"inputs": 1}).predictions == "named"


def test_a_path_that_only_looks_like_that_of_a_served_model_is_not_followed(
    place: Place, tiny: Tiny, tmp_path: Path
) -> None:
    link, up = tmp_path / "link", len((tmp_path / "link").parts) - 1
    below = tmp_path.joinpath("fake", *map(str, range(up)))
    tiny.model(Path(f"{tmp_path}/fake{place.named}"), body="        return 'OUTSIDE'")
    below.mkdir(parents=True)
    link.symlink_to(below)
    path = f"{link}{'/..' * up}{place.named}"
    assert os.path.normpath(path) == str(place.named)
    assert Path(path, "code", "tiny_loader.py").read_text().count("OUTSIDE") == 1

    with grpc.insecure_channel(f"unix:{place.daemon.root}/predict.sock") as channel:
        stub = services.PredictionsStub(channel)  # type: ignore[no-untyped-call]
        asked = {"model": path, "content_type": "application/json", "payload": b'{"inputs": 1}'}
        found = stub.Predict(api.PredictRequest(**asked, pip_requirements_override=["tiny-b"]))

    assert json.loads(found.payload)["predictions"] == "named"


@pytest.mark.parametrize("call", ["predict", "build", "resolve", "get_model", "load_model"])
@pytest.mark.parametrize("kind", ["path", "URI", "link", "missing", "remote"])
def test_callers_may_name_nothing_else(place: Place, call: str, kind: str) -> None:
    link = place.inside.parent / "link"
    if not link.is_symlink():
        link.symlink_to(place.outside)
    model = {
        "path": str(place.outside), "URI": place.outside.as_uri(), "link": str(link),
        "missing": str(place.outside / "missing"), "remote": "s3://bucket/model",
    }[kind]  # fmt: skip
    with place.daemon.client() as client:
        calls: dict[str, Callable[[], object]] = {
            "predict": lambda: client.predict(model, {"inputs": 1}),
            "build": lambda: list(client.build(model)),
            "resolve": lambda: client.resolve(model),
            "get_model": lambda: client.get_model(model),
            "load_model": lambda: client.load_model(model),
        }

        with pytest.raises(Denied, match=r"models\.roots") as caught:
            calls[call]()

    assert caught.value.metadata["setting"] == "models.roots"


@pytest.mark.parametrize(
    ("toml", "is_for_others"),
    [
        ("", False),
        ("[http]\nlisten = '127.0.0.1:0'", False),
        ("[daemon]\ngrpc = '127.0.0.1:0'\n[security]\nprofile = 'auto'", False),
        ("[security]\nprofile = 'dev'\n[access]\ngroup = 'users'", False),
        ("[security]\nprofile = 'standard'", True),
        ("[security]\nprofile = 'strict'", True),
        ("[access]\ngroup = 'users'", True),
        ("[access]\nadmin_group = 'users'", True),
        ("[daemon]\ngrpc = '127.0.0.1:0'\n[access]\ntokens = '/etc/envd/tokens'", True),
    ],
)
def test_whom_a_daemon_is_for_is_who_may_name_models(
    tmp_path: Path, toml: str, is_for_others: object
) -> None:
    (tmp_path / "envd.toml").write_text(toml)
    settings = config.load(root=tmp_path, file=tmp_path / "envd.toml", environ={})

    assert exposure.is_for_others(exposure.settled(settings)) is is_for_others


@pytest.mark.parametrize("profile", ["standard", "dev"])
def test_without_roots_only_who_is_alone_may_name_any(
    start_daemon: Callable[..., Daemon], tmp_path: Path, tiny: Tiny, profile: str
) -> None:
    model = tiny.model(tmp_path / "model")
    daemon = start_daemon(tmp_path / "root", ENVD_SECURITY__PROFILE=profile, **tiny.settings)
    with daemon.client() as client:
        if profile == "dev":
            client.predict(model, {"inputs": 1})
            return
        with pytest.raises(Denied):
            client.predict(model, {"inputs": 1})


def test_what_was_loaded_goes_as_soon_as_other_roots_are_read(
    start_daemon: Callable[..., Daemon], tmp_path: Path, tiny: Tiny
) -> None:
    model, file = tiny.model(tmp_path / "models" / "model"), tmp_path / "envd.toml"
    file.write_text(f'[models]\nroots = ["{tmp_path}/models"]\n')
    more = {"ENVD_CONFIG": str(file), "ENVD_SECURITY__PROFILE": "standard"}
    daemon = start_daemon(tmp_path / "root", **more, **tiny.settings)
    with daemon.client() as client:

        def is_denied(name: str | Path) -> bool:
            try:
                client.predict(name, {"inputs": 1})
            except Denied:
                return True
            return False

        with Client(daemon.root / "admin.sock", timeout_s=240) as admin:
            admin.load_model(model, name="mine")
        assert not is_denied(model)
        assert not is_denied("mine")
        file.write_text(f'[models]\nroots = ["{tmp_path}/others"]\n')
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: is_denied(model))
        assert is_denied("mine")


class Swapping(threading.Thread):
    """Puts a link to what lies outside in the place of a folder, over and over."""

    def __init__(self, folder: Path, to: Path, model: Path) -> None:
        super().__init__()
        self.folder, self.to, self.model = folder, to, model
        self.swaps, self.ended = 0, threading.Event()

    def run(self) -> None:
        aside, link = self.folder.with_name("aside"), self.folder.with_name("new-link")
        while not self.ended.is_set():
            self.folder.rename(aside)
            link.symlink_to(self.to)
            link.rename(self.folder)
            self.folder.unlink()
            aside.rename(self.folder)
            self.swaps += 1
            if self.swaps % 200 == 0:
                # It is read and loaded anew, and has a moment for that.
                self.model.joinpath("MLmodel").touch()
                self.ended.wait(0.1)


@pytest.mark.parametrize("tier", ["1", "2"])
def test_a_worker_gets_the_directory_that_was_read_or_none(stage: Stage, tier: Any) -> None:
    model, environment = stage.model("model", "        return 'inside'")
    outside = stage.tiny.model(stage.house.folder / "outside", body="        return 'OUTSIDE'")
    settings = replace(stage.house.settings, security=Security(sandbox=tier))
    stage.sandbox = tiers.of(settings)

    async def play(pool: Pool) -> None:
        model.path.rename(aside := model.path.with_name("aside"))
        model.path.symlink_to(outside)
        with pytest.raises(errors.ModelMovedError):
            await pool.predict(model, environment, request(1))
        model.path.unlink()
        aside.rename(model.path)
        assert answer(await pool.predict(model, environment, request(1))) == "inside"

    stage.run(play)


@pytest.mark.parametrize("tier", ["1", "2"])
def test_no_answer_ever_comes_from_outside(
    start_daemon: Callable[..., Daemon], tmp_path: Path, tiny: Tiny, tier: str
) -> None:
    team, outside = tmp_path / "models" / "team", tmp_path / "outside"
    inside = tiny.model(team / "model", body="        return 'inside'")
    tiny.model(outside / "model", body="        return 'OUTSIDE'")
    # As like it as can be.
    for path in inside.rglob("*"):
        now = path.stat()
        os.utime(
            outside / "model" / path.relative_to(inside), ns=(now.st_atime_ns, now.st_mtime_ns)
        )
    daemon = start_daemon(
        tmp_path / "root",
        ENVD_SECURITY__PROFILE="standard",
        ENVD_SECURITY__SANDBOX=tier,
        ENVD_MODELS__ROOTS=str(tmp_path / "models"),
        **tiny.settings,
    )
    said: list[object] = []
    with daemon.client() as client:
        client.predict(inside, {"inputs": 1})
        swapping = Swapping(team, outside, inside)
        swapping.start()
        deadline = time.monotonic() + 60
        while swapping.swaps < 1500 or said.count("inside") < 10:
            assert time.monotonic() < deadline, (swapping.swaps, said[-5:])
            try:
                said.append(client.predict(inside, {"inputs": 1}).predictions)
            except client_errors.EnvdError as error:
                said.append(error.reason)
        swapping.ended.set()
        swapping.join()

    kinds = set(said)
    assert "OUTSIDE" not in kinds
    assert kinds <= {"inside", "PERMISSION_DENIED", "MODEL_MOVED", "MODEL_NOT_FOUND"}, kinds
