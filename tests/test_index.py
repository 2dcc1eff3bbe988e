"""The index of the store: fast, never wrong, and never a reason why a list fails."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from envd import held
from envd.store.index import Index, Row
from envd.store.layout import Layout
from envd.store.leases import Holder, take

OLD_NS = 10**9
BASE = Path(sys.executable)


class Root:
    """A root whose manifests are one line each, and a count of how often they are read."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout(path)
        self.reads: list[str] = []
        self.index = Index(self.layout)

    def publish(self, env_id: str, key: str = "key", *, is_old: bool = True) -> None:
        path = self.layout.manifest(env_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(".ready")
        beside.write_text(key)
        beside.replace(path)
        if is_old:
            self.age(env_id)

    def age(self, env_id: str) -> None:
        """Let the last change of the directory be more than a tick ago, and one of its own."""
        home = self.layout.environment(env_id)
        stamp = time.time_ns() - OLD_NS
        os.utime(home, ns=(stamp, stamp))

    def read(self, env_id: str) -> Row | None:
        self.reads.append(env_id)
        try:
            key = self.layout.manifest(env_id).read_text()
        except FileNotFoundError:
            return None
        return row(env_id, key)

    def keys(self, index: Index | None = None) -> dict[str, str]:
        return {one.id: one.spec_key for one in (index or self.index).records(self.read)}

    def anew(self) -> dict[str, str]:
        """List as a process that has just begun."""
        self.reads = []
        return self.keys(Index(self.layout))

    def bad(self) -> list[Path]:
        return sorted(self.layout.root.glob("index.bad-*"))


def row(env_id: str, key: str = "key") -> Row:
    return Row(
        id=env_id,
        spec_key=key,
        manager="virtualenv",
        python="3.11.7",
        created=1000.5,
        total=4000,
        own=1000,
        models=("/srv/model", f"/srv/{env_id}"),
        base=str(BASE),
        base_mtime_ns=BASE.stat().st_mtime_ns,
        details='{"seconds": 1.5}',
    )


@pytest.fixture
def root(tmp_path: Path) -> Root:
    found = Root(tmp_path / "root")
    for number in range(20):
        found.publish(f"{number:032x}", f"key-{number}")
    return found


def expected(count: int = 20) -> dict[str, str]:
    return {f"{number:032x}": f"key-{number}" for number in range(count)}


def test_what_was_read_once_is_not_read_again(root: Root) -> None:
    first = root.index.records(root.read)

    assert len(root.reads) == 20
    assert root.index.records(root.read) == first
    assert Index(root.layout).records(root.read) == first
    assert len(root.reads) == 20
    assert [one.id for one in first] == sorted(expected())
    assert first[3].models == row(first[3].id).models
    assert (first[3].total, first[3].own, first[3].created) == (4000, 1000, 1000.5)


def test_a_root_that_is_not_there_has_nothing_and_stays_away(tmp_path: Path) -> None:
    found = Root(tmp_path / "root")

    assert found.keys() == {}
    assert not found.layout.root.exists()


def test_an_empty_root_gets_no_index(tmp_path: Path) -> None:
    found = Root(tmp_path / "root")
    found.layout.environments.mkdir(parents=True)

    assert found.keys() == {}
    assert not found.layout.index.exists()


@pytest.mark.parametrize("anew", [False, True], ids=["same process", "another process"])
def test_a_directory_that_has_changed_is_read_again(root: Root, *, anew: bool) -> None:
    root.keys()
    changed = f"{7:032x}"
    root.publish(changed, "another key")
    root.reads = []

    found = root.anew() if anew else root.keys()

    assert found == expected() | {changed: "another key"}
    assert root.reads == [changed]
    assert root.anew() == found
    assert root.reads == []


def test_a_directory_that_changed_just_now_is_read_again_until_it_is_older(root: Root) -> None:
    root.keys()
    root.publish("f" * 32, is_old=False)
    home = root.layout.environment("f" * 32)
    # Of two changes within a tick the second leaves no trace.
    stamp = time.time_ns()
    os.utime(home, ns=(stamp, stamp))
    first = root.keys()["f" * 32]
    root.layout.manifest("f" * 32).write_text("second")
    os.utime(home, ns=(stamp, stamp))

    second = root.keys()["f" * 32]
    time.sleep(0.03)
    root.keys()
    root.reads = []

    assert (first, second) == ("key", "second")
    assert root.keys()["f" * 32] == "second"
    assert root.reads == []


def test_a_change_between_the_look_and_the_read_is_noticed(root: Root) -> None:
    changed = f"{7:032x}"

    def read(env_id: str) -> Row | None:
        found = root.read(env_id)
        if env_id == changed:
            root.publish(changed, "another key")
        return found

    root.index.records(read)

    assert root.keys()[changed] == "another key"
    assert root.anew()[changed] == "another key"


def test_a_directory_from_the_future_is_read_once(root: Root) -> None:
    stamp = time.time_ns() + 10**18
    os.utime(root.layout.environment(f"{7:032x}"), ns=(stamp, stamp))
    root.keys()

    assert root.anew() == expected()
    assert root.reads == []


def test_what_is_gone_is_listed_no_more_and_forgotten(root: Root) -> None:
    root.keys()
    shutil.rmtree(root.layout.environment(f"{3:032x}"))
    root.layout.manifest(f"{4:032x}").unlink()
    left = {key: one for key, one in expected().items() if int(key, 16) not in {3, 4}}

    assert root.keys() == left
    assert root.anew() == left
    with closing(sqlite3.connect(root.layout.index)) as connection:
        assert connection.execute("SELECT count(*) FROM environments").fetchone() == (18,)


def test_what_is_no_environment_is_not_listed(root: Root) -> None:
    (root.layout.environments / "file").write_text("")
    (root.layout.environments / "empty").mkdir()
    shutil.copytree(root.layout.environment(f"{1:032x}"), root.layout.environments / "copy")

    def read(env_id: str) -> Row | None:
        found = root.read(env_id)
        return found._replace(id=f"{1:032x}") if found and env_id == "copy" else found

    assert {one.id for one in root.index.records(read)} == set(expected())


def test_last_use_pins_leases_and_builds_are_looked_at_each_time(root: Root) -> None:
    root.layout.pin("any").parent.mkdir()
    used, pinned, leased, built = (f"{number:032x}" for number in range(4))
    root.keys()

    root.layout.used(used).write_bytes(b"\0" * 5)
    os.utime(root.layout.used(used), (2000.5, 2000.5))
    # An older envd dated the manifest when it was used.
    os.utime(root.layout.manifest(pinned), (1500.5, 1500.5))
    root.layout.pin(pinned).touch()
    lease = take(root.layout.leased(leased))
    with held.if_free(root.layout.building(built)):
        found = {one.id: one for one in root.index.records(root.read)}
    assert lease is not None
    lease.close()
    after = {one.id: one for one in root.index.records(root.read)}

    assert (found[used].last_used, found[used].uses) == (2000.5, 5)
    assert (found[pinned].last_used, found[pinned].uses) == (1500.5, 0)
    assert [one.id for one in found.values() if one.is_pinned] == [pinned]
    assert {one.id: one.holders for one in found.values() if one.holders} == {
        leased: (Holder(os.getpid(), "process"),)
    }
    assert [one.id for one in found.values() if one.is_building] == [built]
    assert not any(one.holders or one.is_building for one in after.values())
    assert after[pinned].is_pinned


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_an_interpreter_that_is_not_what_it_was_breaks_what_is_on_it(
    root: Root, tmp_path: Path, change: str
) -> None:
    base = tmp_path / "python"
    base.write_text("")
    mtime_ns = base.stat().st_mtime_ns

    def read(env_id: str) -> Row | None:
        found = root.read(env_id)
        is_on_it = env_id == f"{5:032x}"
        if found and is_on_it:
            return found._replace(base=str(base), base_mtime_ns=mtime_ns)
        return found

    before = root.index.records(read)
    if change == "gone":
        base.unlink()
    else:
        os.utime(base, ns=(1, 1))
    after = root.index.records(read)

    assert not any(one.broken for one in before)
    assert [one.broken for one in after if one.broken] == [
        f"its interpreter `{base}` is gone or has changed"
    ]
    assert after[5].broken


def test_names_that_are_no_text_are_kept(root: Root) -> None:
    strange = os.fsdecode(b"/opt/\xff/python")

    def read(env_id: str) -> Row | None:
        found = root.read(env_id)
        return found._replace(base=strange, models=("ü\n☃",)) if found else None

    root.index.records(read)
    one, *_ = Index(root.layout).records(read)

    assert one.models == ("ü\n☃",)
    assert one.broken == f"its interpreter `{strange}` is gone or has changed"


def test_an_index_damaged_anywhere_says_nothing_wrong(root: Root) -> None:
    root.keys()
    good, records = root.layout.index.read_bytes(), Index(root.layout).records(root.read)
    chance = random.Random(7)
    offsets = [*range(0, 120, 4), *(chance.randrange(len(good)) for _ in range(90))]

    for offset in offsets:
        length = chance.choice([1, 1, 4, 100, 4096])
        noise = bytes(255 - one for one in good[offset : offset + length])
        root.layout.index.write_bytes(good[:offset] + noise + good[offset + length :])

        assert Index(root.layout).records(root.read) == records, offset
        assert Index(root.layout).records(root.read) == records, offset

    assert len(root.bad()) <= 3


@pytest.mark.parametrize(
    "content", [b"", b"no database", b"\0" * 8192, b"SQLite format 3\0", None, b"half"]
)
def test_what_is_no_index_is_made_anew(root: Root, content: bytes | None) -> None:
    root.keys()
    if content == b"half":
        content = root.layout.index.read_bytes()[:6000]
    if content is None:
        root.layout.index.unlink()
    else:
        root.layout.index.write_bytes(content)

    assert root.anew() == expected()
    assert root.anew() == expected()
    assert root.reads == []
    assert len(root.bad()) == (0 if content in {b"", None} else 1)


def test_what_is_no_file_in_its_place_is_moved_aside(root: Root) -> None:
    root.layout.index.mkdir()
    (root.layout.index / "file").write_text("")
    assert root.anew() == expected()

    root.layout.index.unlink()
    os.mkfifo(root.layout.index)
    assert root.anew() == expected()

    assert root.anew() == expected()
    assert root.reads == []
    assert len(root.bad()) == 2


def test_the_last_three_bad_ones_are_kept(root: Root) -> None:
    for number in range(5):
        if number % 2:
            root.layout.index.unlink(missing_ok=True)
            root.layout.index.mkdir()
        else:
            root.layout.index.write_text(f"bad {number}")
        root.anew()

    assert [one.is_dir() or one.read_text() for one in root.bad()] == ["bad 2", True, "bad 4"]


def test_the_index_of_another_version_is_replaced(root: Root) -> None:
    root.keys()
    with closing(sqlite3.connect(root.layout.index)) as connection:
        connection.execute("DROP TABLE environments")
        connection.execute("PRAGMA user_version = 99")

    assert root.anew() == expected()
    assert len(root.reads) == 20
    assert root.anew() == expected()
    assert root.reads == []
    assert root.bad() == []


def test_an_index_that_is_damaged_while_a_daemon_lists_is_made_anew(root: Root) -> None:
    root.keys()
    root.layout.index.write_bytes(b"damage" * 1000)
    root.publish("f" * 32)

    assert root.keys() == expected() | {"f" * 32: "key"}
    assert root.anew() == expected() | {"f" * 32: "key"}
    assert len(root.bad()) == 1
    assert root.anew() == expected() | {"f" * 32: "key"}
    assert root.reads == []


def test_whoever_keeps_the_index_locked_is_not_waited_for_long(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envd.store.index._TIMEOUT_S", 0.05)
    root.keys()

    with closing(sqlite3.connect(root.layout.index)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert root.anew() == expected()

    assert root.bad() == []
    assert root.anew() == expected()
    assert root.reads == []


def test_an_index_that_cannot_be_written_is_done_without(root: Root) -> None:
    # A superuser may write everywhere, but not without the capabilities that say so.
    program = f"""
        import ctypes, pathlib
        from tests.test_index import *
        ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
        root = Root(pathlib.Path({str(root.layout.root)!r}))
        assert root.keys() == expected()
        assert root.keys() == expected()
        assert len(root.reads) == 20
        assert root.anew() == expected()
        assert len(root.reads) == 20
    """
    root.layout.root.chmod(0o555)

    status = run(program).wait()
    root.layout.root.chmod(0o755)

    assert status == 0
    assert not root.layout.index.exists()


@pytest.mark.parametrize("what", ["the file", "a list"])
def test_a_full_disk_costs_the_index_only(root: Root, what: str) -> None:
    if what == "the file":
        root.keys()
        root.publish("f" * 32)
    program = f"""
        import pathlib, resource, signal
        from tests.test_index import *
        root = Root(pathlib.Path({str(root.layout.root)!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        assert set(root.keys()) >= set(expected())
    """

    assert run(program).wait() == 0
    assert set(root.anew()) >= set(expected())
    assert root.anew()
    assert root.reads == []


def run(program: str, *, stdout: int | None = None) -> subprocess.Popen[bytes]:
    checkout = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=checkout, stdout=stdout
    )


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[bytes]]:
    process = run(program, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_writer_killed_at_any_moment_leaves_nothing_wrong(root: Root) -> None:
    # It publishes and lists without an end; every row names the directory's content.
    program = f"""
        import pathlib, random
        from tests.test_index import *
        root = Root(pathlib.Path({str(root.layout.root)!r}))
        print("begins", flush=True)
        for count in range(10**9):
            for number in random.sample(range(20), 5):
                root.publish(f"{{number:032x}}", f"key-{{count}}" * 300)
            Index(root.layout).records(root.read)
    """
    chance = random.Random(3)
    for _ in range(4):
        with running(program) as process:
            time.sleep(chance.uniform(0.02, 0.25))
            process.send_signal(signal.SIGKILL)
            process.wait()

        truth = {key: root.layout.manifest(key).read_text() for key in expected()}
        assert root.anew() == truth
        assert root.anew() == truth
    assert root.bad() == []


@pytest.mark.parametrize("at", ["INSERT", "DELETE", "CREATE"])
def test_a_writer_killed_in_its_transaction_leaves_nothing_wrong(root: Root, at: str) -> None:
    if at != "CREATE":
        root.keys()
    for number in range(10):
        root.publish(f"{number:032x}", "new" * 1000)
    shutil.rmtree(root.layout.environment(f"{19:032x}"))
    # A cache of one page: what is being written goes to the file before it is committed.
    program = f"""
        import os, pathlib, signal, sqlite3
        import envd.store.index as module
        from tests.test_index import *
        class Connection(sqlite3.Connection):
            def execute(self, text, *given):
                if text.startswith("BEGIN"):
                    super().execute("PRAGMA cache_size = 1")
                found = super().execute(text, *given) if not text.startswith({at!r}) else None
                if text.startswith({at!r}):
                    os.kill(os.getpid(), signal.SIGKILL)
                return found
            def executemany(self, text, rows):
                found = super().executemany(text, rows)
                if text.startswith({at!r}):
                    os.kill(os.getpid(), signal.SIGKILL)
                return found
        connect = sqlite3.connect
        module.sqlite3.connect = lambda *a, **b: connect(*a, **b, factory=Connection)
        Root(pathlib.Path({str(root.layout.root)!r})).keys()
    """

    assert run(program).wait() == -signal.SIGKILL
    truth = {key: root.layout.manifest(key).read_text() for key in list(expected())[:19]}
    assert root.anew() == truth
    assert root.anew() == truth
    assert root.reads == []
    assert root.bad() == []


def test_processes_and_threads_list_while_environments_come_and_go(root: Root) -> None:
    program = f"""
        import pathlib
        from tests.test_index import *
        root = Root(pathlib.Path({str(root.layout.root)!r}))
        print("begins", flush=True)
        for count in range(10**9):
            found = root.keys() if count % 2 else root.anew()
            assert set(list(expected())[:10]) <= set(found)
    """
    failed: list[BaseException] = []
    is_over = threading.Event()

    def list_on() -> None:
        try:
            while not is_over.is_set():
                assert set(list(expected())[:10]) <= set(root.keys())
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=list_on) for _ in range(2)]
    with running(program) as one, running(program) as other:
        for thread in threads:
            thread.start()
        deadline, count = time.monotonic() + 1.5, 0
        while time.monotonic() < deadline or count < 100:
            env_id = f"{10 + count % 10:032x}"
            shutil.rmtree(root.layout.environment(env_id), ignore_errors=True)
            root.publish(env_id, f"key-{count}", is_old=count % 3 == 0)
            count += 1
        is_over.set()
        for thread in threads:
            thread.join()
        assert (one.poll(), other.poll()) == (None, None)
    time.sleep(0.03)

    truth = {key: root.layout.manifest(key).read_text() for key in expected()}
    assert not failed
    assert root.keys() == truth
    assert root.anew() == truth
    assert root.anew() == truth
    assert root.reads == []
    assert root.bad() == []


def test_one_environment_is_told_of_as_in_the_list(root: Root) -> None:
    listed = root.index.records(root.read)

    assert [root.index.record(row(one.id, one.spec_key)) for one in listed] == listed


def test_what_the_reader_raises_is_raised(root: Root) -> None:
    def read(_: str) -> Row | None:
        message = "cannot be read"
        raise PermissionError(message)

    with pytest.raises(PermissionError, match="cannot be read"):
        root.index.records(read)
