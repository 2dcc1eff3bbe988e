"""The units, installed as docs/operating.md says, run by a systemd that has booted."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.booted import CGROUP, PROJECT, Machine, booted, debian, install
from tests.conftest import wait_for
from tests.tiny import Tiny

pytestmark = pytest.mark.slow

OPERATING = (PROJECT / "docs" / "operating.md").read_text()
SETTINGS = """
[index]
no_index = true
find_links = ["/srv/tiny/wheels"]
[security]
sandbox = "2"
"""
# Says where it is, and leaves something behind in a session of its own.
LEAVES = """\
        import os, subprocess
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        return [os.getuid(), os.getpid(), os.path.exists("/var/lib"), os.path.exists("/root")]
"""
ASK = "ENVD_SOCKET=/run/envd/predict.sock envctl"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    missing = [one for one in ("mmdebstrap", "nsenter") if shutil.which(one) is None]
    if missing or os.getuid() or not CGROUP.parent.exists():
        why = " and ".join(missing) or "root, or a hierarchy of cgroups for systemd,"
        pytest.skip(f"{why} is missing: systemd cannot be booted")
    root = tmp_path_factory.mktemp("machine") / "root"
    debian(root)
    install(root, "\n".join(_commands()))
    (root / "etc/envd/envd.toml").write_text(SETTINGS)
    folder = root / "srv/tiny"
    folder.mkdir(parents=True)
    Tiny.make(folder).model(root / "srv/model", python="3.11", body=LEAVES)
    (root / "srv/input.json").write_text('{"inputs": [1]}')
    limits = root / "etc/systemd/system/envd.service.d/limits.conf"
    limits.parent.mkdir()
    limits.write_text("[Service]\nWatchdogSec=8\n")
    with booted(root) as found:
        wait_for(lambda: found("systemctl is-active envd").returncode == 0)
        yield found


def _commands() -> list[str]:
    """Return what the page says about installing, but for building the wheels."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", OPERATING, re.DOTALL)[:2]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    assert lines[0].startswith("uv build")
    return ['DESTDIR=""', *lines[1:]]


def test_the_unit_runs_models_in_the_tightest_sandbox(machine: Machine) -> None:
    answer = machine.said(f"{ASK} predict -m /srv/model -i /srv/input.json")

    uid = machine.said("id -u envd")
    assert answer == f'{{"predictions": [{uid}, 1, true, false]}}'
    assert " 2 " in machine.said(f"{ASK} workers list | tail -1")
    assert "sandbox 2" in machine.said("journalctl -u envd --no-pager")


def test_it_is_reloaded_and_its_timer_collects(machine: Machine) -> None:
    assert machine("systemctl reload envd").returncode == 0
    done = machine("systemctl start envd-gc")
    assert done.returncode == 0, machine.said("journalctl -u envd-gc --no-pager")
    assert machine.said("systemctl is-active envd-gc.timer") == "active"
    assert "serving" in machine.said("systemctl show -P StatusText envd")


def test_a_daemon_that_stands_still_is_started_anew(machine: Machine) -> None:
    before = machine.said("systemctl show -P MainPID envd")

    machine.said(f"kill -STOP {before}")

    wait_for(lambda: machine.said("systemctl show -P NRestarts envd") == "1")
    wait_for(lambda: machine("systemctl is-active envd").returncode == 0)
    assert machine.said("systemctl show -P MainPID envd") != before
    assert machine("pgrep -x sleep").returncode == 1


def test_it_stops_well_and_leaves_nothing(machine: Machine) -> None:
    machine.said(f"{ASK} predict -m /srv/model -i /srv/input.json")
    assert machine("pgrep -x sleep").returncode == 0

    machine.said("systemctl stop envd")

    assert machine.said("systemctl show -P Result envd") == "success"
    assert machine.said("systemctl show -P ExecMainStatus envd") == "0"
    assert machine("pgrep -u envd").returncode == 1


def test_what_others_may_see_of_it(machine: Machine) -> None:
    modes = machine.said("stat -c '%a %U' /var/lib/envd /etc/envd/envd.toml")

    assert modes.splitlines()[0] == "700 envd"
    assert modes.splitlines()[1].startswith("640 ")
    assert Path(machine.root, "var/lib/envd/environments").is_dir()
