"""The cache on disk.

    <root>/
    |-- README                            what this directory is
    |-- daemon.lock                       held by the daemon of this root
    |-- daemon.json                       its pid and sockets, written under that lock
    |-- environments/<env_id>/
    |   |-- ready.json                    the manifest: it names the attempt that is ready
    |   |-- <attempt>.sizes               how large it is, once somebody has asked
    |   |-- used-by/<digest>              a file per model that uses it, its path inside
    |   `-- <attempt>/                    the prefix, built where it will live
    |-- specs/<spec_key>/
    |   |-- spec.json                     the canonical spec
    |   |-- lock.json                     what it resolved to as of its month
    |   `-- lock-<day>.json               or as of a day, where the month had no answer
    |-- held/                             files the kernel's locks are taken on; never removed
    |   |-- spec-<spec_key>               held while the spec is locked
    |   |-- build-<env_id>                held while the environment is built
    |   |-- wheel-<recipe>                held while a wheel is built
    |   `-- lease-<env_id>                held shared by whoever uses the environment
    |-- wheels/<sha256>/<file>.whl        what no index had as a wheel: built or copied once
    |-- wheels/made/<recipe>.json         which of them a source and its limits became
    |-- logs/<spec_key>.log               the last build
    |-- models/                           downloads of model URIs
    |-- pythons/                          what uv downloaded, and `probes.json`
    |-- cache/                            the installers' download caches
    |-- empty/                            where installers run: no stray configuration
    |-- scratch/                          the directories workers may write in
    `-- trash/                            renamed here first, deleted after

An environment is ready if and only if its manifest says so: a directory that exists
proves nothing, and an attempt that no manifest names is rubbish.
"""

from envd.store.leases import Holder, Holders, Lease
from envd.store.manifest import Base, Manifest
from envd.store.store import Attempt, Environment, Store

__all__ = ["Attempt", "Base", "Environment", "Holder", "Holders", "Lease", "Manifest", "Store"]
