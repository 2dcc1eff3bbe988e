"""A small Debian with its own systemd, in namespaces: what units do when they are really run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
PATH = "/usr/bin:/usr/sbin:/bin:/sbin"
CGROUP = Path("/sys/fs/cgroup/systemd/envd-test")
# systemd wants to be the first process, and its root to be one: in a chroot there are no user
# namespaces.
_BOOT = """
set -eu
mount --make-rprivate /
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount -t sysfs -o ro sysfs {root}/sys
mount -t tmpfs -o mode=755 tmpfs {root}/sys/fs/cgroup
mkdir {root}/sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup {root}/sys/fs/cgroup/systemd
mount -t tmpfs -o mode=755 tmpfs {root}/run
mount -t tmpfs tmpfs {root}/tmp
mount -t tmpfs -o mode=755 tmpfs {root}/dev
mkdir {root}/dev/pts {root}/dev/shm
for name in null zero full random urandom tty; do
  touch {root}/dev/$name
  mount --bind /dev/$name {root}/dev/$name
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts {root}/dev/pts
ln -s pts/ptmx {root}/dev/ptmx
ln -s /proc/self/fd {root}/dev/fd
cd {root}
mkdir -p .before
pivot_root . .before
cd /
umount -l /.before
exec env -i container=test PATH={path} /lib/systemd/systemd --show-status=no
"""


@dataclass(frozen=True)
class Machine:
    """One that runs: its files, and the process that is its first."""

    root: Path
    init: int

    def __call__(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script in it."""
        inside = ["nsenter", "-t", str(self.init), "-m", "-p", "-u", "-i", "-C", "-r", "-w"]
        return subprocess.run(
            [*inside, "env", "-i", f"PATH={PATH}", "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def said(self, script: str) -> str:
        done = self(script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def debian(root: Path) -> None:
    """Make a Debian in *root* with systemd, and in it what a checkout is installed from."""
    packages = "systemd,systemd-sysv,python3,python3-venv,ca-certificates,procps"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", root],
        check=True,
    )
    shutil.copyfile(CERTIFICATES, root / "etc/ssl/certs/ca-certificates.crt")
    uv = Path(sys.executable).parent / "uv"
    argv = [uv, "build", "-q", "--wheel", "--all-packages", "--out-dir", root / "dist"]
    subprocess.run(argv, cwd=PROJECT, check=True)
    shutil.copytree(PROJECT / "systemd", root / "systemd")


def install(root: Path, script: str) -> None:
    """Run a shell script in *root*, where nothing else runs."""
    variables = {"PATH": PATH, "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt"}
    mounted = 'mount -t proc proc "$0/proc" && exec chroot "$0" sh -euxc "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, root, script],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """Run the systemd of *root*."""
    CGROUP.mkdir(exist_ok=True)
    boot = _BOOT.format(root=root, path=PATH)
    spaces = ["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup"]
    enter = 'echo $$ > "$0/cgroup.procs" && exec unshare "$@"'
    process = subprocess.Popen(
        ["sh", "-c", enter, CGROUP, *spaces, "sh", "-c", boot],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()):
            assert process.poll() is None
        yield Machine(root, int(found[0]))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
