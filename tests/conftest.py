"""What the tests share: one root with real environments, tiny wheels, daemons, commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from envd_client import Client
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from envd import durable
from envd.build import Interpreter, Interpreters
from envd.config import Settings
from tests import forked, unpacked
from tests import tiny as wheels
from tests.conda_channel import Channel
from tests.conda_forge import CondaForge
from tests.house import House
from tests.index import Index
from tests.mirror import Mirror
from tests.stage import Stage
from tests.tiny import Tiny

MODELS = Path(__file__).parent / "models"
_START_S = 20
_INTERRUPT = signal.default_int_handler
# The files that take longest come first, so that no process waits for one at the end.
_LONGEST = (
    "test_main_job", "test_readme", "test_crashes", "test_conda_models", "test_cli_verbs",
    "test_single_flight", "test_model_location", "test_cancelling", "test_build_limits",
    "test_robust", "test_workers", "test_own_packages", "test_shortages", "test_upkeep",
    "test_canaries", "test_verify", "test_recovery", "test_lock_command", "test_http_limits",
    "test_http_mlflow",
)  # fmt: skip
# What the first of them downloads, the other has.
_TOGETHER = {"tests/test_readme.py": "tests/test_main_job.py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")


def pytest_configure() -> None:
    # Whoever runs the tests in the background has the terminal's signals ignored in all of them.
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, _INTERRUPT)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


class _ByFile(LoadFileScheduling):
    """Gives each file to one process, and some files to the same."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByFile:
    return _ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # In CI every Python and tool is there: a test that skips has lost its reason to be.
    if os.environ.get("CI") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("CI: skipped tests count as failures", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@dataclass(frozen=True)
class Expected:
    """A real model with the input and the answer MLflow gave."""

    path: Path
    payload: dict[str, object]
    answer: dict[str, object]


def expected(letter: str) -> Expected:
    path = next(one for one in sorted(MODELS.iterdir()) if one.name.split("_")[0] == letter)
    path = path.parent / path.name.removesuffix(".expected.json")
    document = json.loads(Path(f"{path}.expected.json").read_text())
    return Expected(path, document["payload"], document["expected"])


@dataclass(frozen=True)
class Envctl:
    """The command, on one root."""

    root: Path
    env: dict[str, str]

    def __call__(
        self, *arguments: object, stdin: str = "", **changed: str
    ) -> subprocess.CompletedProcess[str]:
        return forked.run(self.argv(*arguments), self.env | changed, stdin, 240)

    def argv(self, *arguments: object) -> list[str]:
        return [f"{Path(sys.executable).parent}/envctl", *map(str, arguments)]


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs."""

    root: Path
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, **options: object) -> Client:
        return Client(self.root / "predict.sock", timeout_s=240, **options)  # type: ignore[arg-type]


def environment(root: Path, home: Path, **more: str) -> dict[str, str]:
    """Return the variables a command gets: few, and a HOME with nothing in it."""
    kept = ("PATH", "PYENV_ROOT", "SSL_CERT_FILE", "SSL_CERT_DIR", "LANG")
    given = {name: os.environ[name] for name in kept if name in os.environ}
    return given | {"HOME": str(home), "ENVD_ROOT": str(root)} | more


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root in which the real environments are built, once per run."""
    return tmp_path_factory.mktemp("shared") / "root"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Wheels of a few bytes, and models that need only those."""
    return Tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has nothing but its standard library."""
    return unpacked.bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PATH: git, and the Python that runs the tests as the only one."""
    return wheels.tools(tmp_path_factory.mktemp("tools") / "bin")


def one_python(tools: Path) -> dict[str, str]:
    """Return the variables that hide the other Pythons: each of a root's is asked what it is."""
    return {"PATH": str(tools), "PYENV_ROOT": str(tools)}


@pytest.fixture(scope="session")
def interpreter(tools: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """The Python that runs the tests, as envd finds it."""
    with pytest.MonkeyPatch.context() as patch:
        _alone(patch, tools, home)
        (found,) = Interpreters(Settings(tmp_path_factory.mktemp("pythons"))).found()
        return found


@pytest.fixture
def house(
    tmp_path: Path,
    interpreter: Interpreter,
    tools: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> House:
    """An empty root with an empty folder of packages."""
    _alone(monkeypatch, tools, home)
    return House(tmp_path, interpreter)


@pytest.fixture
def stage(house: House, tiny: Tiny) -> Stage:
    """A house with the tiny wheels, whose models run in a pool of this process."""
    house.with_index(find_links=(str(tiny.wheels),))
    workers = replace(house.settings.workers, stop_grace=0.3)
    house.settings = replace(house.settings, workers=workers)
    return Stage(house, tiny)


@pytest.fixture(scope="session")
def conda_forge(tmp_path_factory: pytest.TempPathFactory) -> CondaForge:
    """The real packages of this run, made once for all its processes."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return CondaForge(shared / "conda-forge-packages")


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    """An empty channel."""
    return Channel(tmp_path / "channels" / "conda-forge")


@pytest.fixture
def mirror(channel: Channel) -> Iterator[Mirror]:
    """What serves the channel, as `/conda-forge`."""
    with Mirror(channel.folder.parent) as found:
        yield found


def _alone(patch: pytest.MonkeyPatch, tools: Path, home: Path) -> None:
    """Hide from this process what the machine has of its own."""
    patch.setenv("PATH", str(tools))
    patch.setenv("HOME", str(home))
    for name in ("PYENV_ROOT", "NETRC", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        patch.delenv(name, raising=False)


@pytest.fixture
def start_index() -> Iterator[Callable[..., Index]]:
    """Start package indexes that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Index(**options))


@pytest.fixture
def envctl(tmp_path: Path, home: Path, tiny: Tiny) -> Envctl:
    """envctl on an empty root, with the tiny wheels for an index and one Python."""
    root = tmp_path / "root"
    return Envctl(root, environment(root, home, **tiny.settings))


@pytest.fixture(scope="module")
def more_settings() -> dict[str, str]:
    """What `either` has of settings besides the tiny wheels."""
    return {}


@pytest.fixture(scope="module", params=["alone", "daemon"])
def either(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    home: Path,
    tiny: Tiny,
    more_settings: dict[str, str],
) -> Iterator[Envctl]:
    """envctl on a root of the module's, without a daemon and with one."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    settings = tiny.settings | more_settings
    daemon = launch(root, home, **settings) if request.param == "daemon" else None
    yield Envctl(root, environment(root, home, **settings))
    if daemon:
        stop(daemon)


@pytest.fixture
def shared_envctl(shared_root: Path, home: Path) -> Envctl:
    return Envctl(shared_root, environment(shared_root, home))


@pytest.fixture
def start_daemon(home: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons that end with the test."""
    started: list[Daemon] = []

    def start(root: Path, **more: str) -> Daemon:
        started.append(launch(root, home, **more))
        return started[-1]

    yield start
    for one in started:
        stop(one)


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon], tmp_path: Path, tiny: Tiny) -> Daemon:
    """A daemon on an empty root, with the tiny wheels for an index and one Python."""
    return start_daemon(tmp_path / "root", **tiny.settings)


@pytest.fixture(scope="module")
def module_daemon(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny
) -> Iterator[Daemon]:
    """A daemon like that, for all tests of a module that neither end nor change it."""
    found = launch(tmp_path_factory.mktemp("daemon") / "root", home, **tiny.settings)
    yield found
    stop(found)


@pytest.fixture(scope="module")
def shared_daemon(shared_root: Path, home: Path) -> Iterator[Daemon]:
    """A daemon on the root of the real environments."""
    found = launch(shared_root, home)
    yield found
    stop(found)


def launch(root: Path, home: Path, **more: str) -> Daemon:
    process = subprocess.Popen(
        [f"{Path(sys.executable).parent}/envd"],
        env=environment(root, home, **more),
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("envd "), f"the daemon did not start: {line!r}"
    return Daemon(root, process)


def stop(found: Daemon) -> None:
    found.process.send_signal(signal.SIGCONT)
    found.process.terminate()
    try:
        found.process.communicate(timeout=_START_S)
    except subprocess.TimeoutExpired:
        found.process.kill()
        found.process.communicate()


@pytest.fixture(autouse=True)
def _leaves_no_process_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    # Whoever has no folder of its own started nothing there, as most tests.
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    deadline = time.monotonic() + _START_S
    while folder and (left := _processes_of(folder)):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def _processes_of(folder: Path) -> list[str]:
    """Return the commands of the processes that work in *folder* or were told of it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            cwd = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115
            where = f"{cwd} {os.fsdecode(Path(f'/proc/{pid}/cmdline').read_bytes())}"
        except OSError:
            continue
        if f"{folder}/" in f"{where}/" and int(pid) != os.getpid():
            found.append(where.replace("\0", " "))
    return found


def is_running(pid: int) -> bool:
    """Whether *pid* is a process that has not ended; a zombie has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def wait_for(happened: Callable[[], object], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def lose_interpreter(manifest: Path) -> None:
    """Let the environment of *manifest* be built on a Python that is not there any more."""
    document = durable.read_checked(manifest)
    document["base"]["mtime_ns"] = 1
    durable.write_checked(manifest, document)


def link_cache(shared: Path, root: Path) -> None:
    """Give *root* the downloads, the locks and the probes of *shared*, at no cost."""
    for name in ("cache", "specs"):
        shutil.copytree(shared / name, root / name, copy_function=os.link, symlinks=True)
