"""The cache on disk.

    <root>/
    |-- README                            what this directory is
    |-- format                            of this tree; a newer one is only listed
    |-- clock.json                        where the store's clock started in this boot
    |-- daemon.lock                       held by the daemon of this root
    |-- daemon.json                       its pid and sockets, written under that lock
    |-- environments/<env_id>/
    |   |-- ready.json                    the manifest: it names the attempt that is ready
    |   |-- deleting.json                 the manifest of one that is to be removed
    |   |-- used                          its mtime is the last use, its size how many
    |   |-- used-by/<digest>              a file per model that uses it, its path inside
    |   |-- <attempt>.files               every file of the attempt, as it was published
    |   `-- <attempt>/                    the prefix, built where it will live
    |-- specs/<spec_key>/
    |   |-- spec.json                     the canonical spec
    |   |-- lock.json                     what it resolved to as of its month
    |   `-- lock-<day>.json               or as of a day, where the month had no answer
    |-- failures/<spec_key>.json          how its last build failed, while that counts
    |-- pins/<env_id>                     gc keeps it
    |-- held/                             files the kernel's locks are taken on; never removed
    |   |-- spec-<spec_key>               held while the spec is locked
    |   |-- build-<env_id>                held while the environment is built or removed
    |   |-- wheel-<recipe>                held while a wheel is built
    |   |-- fetch-<key>                   held while a model is asked for, or removed
    |   |-- conda-cache                   held shared while conda packages are linked
    |   |-- conda-packages                a byte of it held while a conda package is fetched
    |   |-- slot-<number>                 held by each build that works: so many at once
    |   |-- lease-<env_id>                held shared by whoever uses the environment
    |   `-- cancelled-<name>              who held it when that was cancelled
    |-- wheels/<sha256>/<file>.whl        what no index had as a wheel: built or copied once
    |-- wheels/made/<recipe>.json         which of them a source and its limits became
    |-- logs/<spec_key>.log               the last build
    |-- models/                           downloads of model URIs
    |-- pythons/                          what uv downloaded, and `probes.json`
    |-- cache/                            the installers' downloads, bytecode, digests of files
    |-- empty/                            where installers run: no stray configuration
    |-- scratch/                          the directories workers may write in
    |-- index.sqlite                      a list of what is here: disposable
    `-- trash/                            renamed here first, deleted after

An environment is ready if and only if its manifest says so: a directory that exists
proves nothing, and an attempt that no manifest names is rubbish.

`store` finds, builds and leases, `removal` and `gc` say who goes, `collecting` lets them go,
`contents` sees what changed.
"""

from envd.store.leases import Holder, Holders, Lease
from envd.store.manifest import Base, Manifest
from envd.store.record import Record
from envd.store.store import Attempt, Environment, Store

__all__ = [
    "Attempt",
    "Base",
    "Environment",
    "Holder",
    "Holders",
    "Lease",
    "Manifest",
    "Record",
    "Store",
]
