"""Every command of the README, and of the pages it leads to, works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envd import config
from tests.conftest import Daemon, environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [*(ROOT / "docs").glob("*.md")]
SERVING = (ROOT / "docs" / "serving.md").read_text()


# First, for what it builds is there for the commands then; the last of them removes it.
def test_the_python_of_the_readme_runs(
    start_daemon: Callable[..., Daemon], shared_root: Path, home: Path
) -> None:
    # Its environments were built for their owner alone.
    settings = {"ENVD_DAEMON__GRPC": "127.0.0.1:0", "ENVD_SECURITY__PROFILE": "dev"}
    daemon = start_daemon(shared_root, **settings)
    with daemon.client() as client:
        client.load_model(ROOT / "examples" / "iris", name="iris")
    address = json.loads((shared_root / "daemon.json").read_text())["grpc"]
    blocks = re.findall(r"```python\n(.*?)```", SERVING + README, re.DOTALL)

    said = []
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block.replace("127.0.0.1:8001", address)],
            cwd=ROOT,
            env=_environment(shared_root, home),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        said.append(done.stdout or done.stderr)

    assert said == ["[[2]]\n", "[0]\n"]


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md", "docs/environments.md"])
def test_the_commands_of_the_everyday_run(page: str, shared_root: Path, home: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]
    script = "set -eux\n" + "\n".join(commands)

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=_environment(shared_root, home),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr
    assert len(commands) >= 2
    for line in re.findall(r"^\{.*\}$", "\n".join(blocks), re.MULTILINE):
        assert line in done.stdout


def test_the_settings_of_the_pages_are_settings(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", SERVING, re.DOTALL)
    (tmp_path / "envd.toml").write_text(block)

    found = config.load(file=tmp_path / "envd.toml", environ={})

    assert [one.name for one in found.served] == ["wine", "chat"]


def test_the_make_targets_of_the_readme_are_there() -> None:
    named = set(re.findall(r"make ([a-z][a-z-]*)", README)) - {"and"}
    makefile = (ROOT / "Makefile").read_text()

    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{one.name}" for one in DOCS)])
def test_what_a_page_leads_to_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        led_to = (ROOT / page).parent / file if file else ROOT / page
        if "://" not in link:
            assert led_to.exists(), link
            assert not anchor or anchor in anchors(led_to), link


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls the headings of *page* in links."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in titles}


def _environment(root: Path, home: Path) -> dict[str, str]:
    env = environment(root, home)
    return env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
