"""The sections of the settings file: what can be set, one class for each table.

Each field is a setting: its name, its type, its default and what it means. The file, the
variables, `envctl config` and the example are made of them (`envd.config`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from envd.settings.fields import setting
from envd.settings.values import (
    Address,
    Bytes,
    Cores,
    Count,
    CountOrAuto,
    CountOrZero,
    Grant,
    IndexUrl,
    Listen,
    Location,
    Loopback,
    Mirror,
    ModelUri,
    Prefix,
    Program,
    Seconds,
    Share,
)


@dataclass(frozen=True, slots=True)
class Index:
    """Where packages come from."""

    urls: tuple[IndexUrl, ...] = setting(
        (), "Package indexes, the first preferred; none means PyPI."
    )
    find_links: tuple[Location, ...] = setting(
        (), "Directories or pages of wheels to look in as well."
    )
    offline: bool = setting(False, "Never touch the network: only what is cached.")  # noqa: FBT003
    no_index: bool = setting(False, "Use `find_links` only.")  # noqa: FBT003
    keyring: bool = setting(False, "Ask the `keyring` command for credentials.")  # noqa: FBT003


@dataclass(frozen=True, slots=True)
class Resolve:
    """How what a model leaves open is settled."""

    as_of: Literal["month", "now"] = setting(
        "month", "Resolve as of the month a model was logged in, or with today's packages."
    )
    repair: bool = setting(True, "Mend what is known to break old models.")  # noqa: FBT003
    env_manager: Literal["virtualenv", "conda", "auto"] = setting(
        "virtualenv",
        "What makes environments, as `--env-manager`; `auto` is conda for models whose conda "
        "packages PyPI does not have.",
    )


@dataclass(frozen=True, slots=True)
class Conda:
    """Where conda packages come from."""

    defaults: Literal["rewrite", "warn", "deny"] = setting(
        "rewrite",
        "What becomes of Anaconda's own channels: conda-forge in their place, only a note, or "
        "the model is refused.",
    )
    channel_alias: IndexUrl = setting(
        IndexUrl("https://conda.anaconda.org"), "Where channels that are no URL lie."
    )
    mirrors: tuple[Mirror, ...] = setting(
        (),
        'Channels fetched from elsewhere, `{ conda-forge = ["https://..."] }`: from the first that '
        "answers, with the credentials or the token in its URL.",
    )
    exe: Program = setting(
        Program(""),
        "A conda, mamba or micromamba to solve with in the place of rattler, as `--conda-exe`.",
    )
    auth_file: Location = setting(
        Location(""), "Rattler's file of credentials; none means its own store."
    )


@dataclass(frozen=True, slots=True)
class Security:
    """What models may: their files ask for besides packages, and their code do."""

    profile: Literal["auto", "dev", "standard", "strict"] = setting(
        "auto",
        "`dev` allows and notes, `standard` allows what is listed here, `strict` wheels only; "
        "`auto` is `dev` for the owner alone and `standard` for anybody else.",
    )
    sandbox: Literal["auto", "0", "1", "2"] = setting(
        "auto",
        "What keeps models and builds to themselves: 2 is namespaces, landlock and seccomp, 1 is "
        "landlock and seccomp, 0 neither; `auto` is 0 for `dev`, the best this machine has for "
        "`standard`, and 2 for `strict`.",
    )
    user: str = setting(
        "nobody", "Who workers run as in sandbox 2 where envd is root, who they never are."
    )
    indexes: tuple[Prefix, ...] = setting((), "Indexes a model may name, by how their URLs begin.")
    sources: tuple[Prefix, ...] = setting(
        (), "URLs and repositories a model may install from, by how they begin."
    )
    channels: tuple[str, ...] = setting((), "Conda channels a model may use besides conda-forge.")
    local: bool = setting(
        False,  # noqa: FBT003
        "Whether a model may bring packages of its own: wheels, source trees.",
    )
    variables: tuple[str, ...] = setting(
        (), "Variables of envd's environment that a model's `${NAME}` may stand for."
    )


@dataclass(frozen=True, slots=True)
class Build:
    """How environments are built."""

    link_mode: Literal["hardlink", "copy", "clone", "symlink"] = setting(
        "hardlink", "How files get from the download cache into an environment."
    )
    timeout: Seconds = setting(Seconds(1800), "The longest a build may take.")
    silence: Seconds = setting(
        Seconds(300), "A build that says nothing and moves no data for so long is stopped."
    )
    at_once: Count = setting(Count(2), "How many builds run at once; the others wait.")
    reserve: Bytes = setting(
        Bytes(1 << 30),
        "Free disk that a build leaves; it is refused or stopped where there is less.",
    )
    memory_limit: Bytes = setting(
        Bytes(0), "The most memory that what a build runs may take; 0 sets no limit."
    )
    cpu_limit: Cores = setting(Cores(0), "How many processors it may use; 0 sets no limit.")
    process_limit: CountOrZero = setting(
        CountOrZero(0), "How many processes and threads it may have; 0 sets no limit."
    )
    scratch: Bytes = setting(
        Bytes(2 << 30), "The size of its /tmp and its /dev/shm, in memory, in sandbox 2."
    )


@dataclass(frozen=True, slots=True)
class Python:
    """Which interpreters environments are built on."""

    match: Literal["minor", "exact"] = setting(
        "minor", "`exact` refuses another patch release than the model asks for."
    )
    roots: tuple[Location, ...] = setting((), "Directories that hold one Python per directory.")
    download: Literal["auto", "never"] = setting(
        "auto", "Whether uv may download a Python that is not here."
    )


@dataclass(frozen=True, slots=True)
class Models:
    """Where models come from."""

    refresh: Seconds = setting(
        Seconds(60), "How long the download of a model URI is used before it is asked again."
    )
    tracking_uri: str = setting("", "MLflow's tracking server, for `runs:/` and `models:/`.")
    registry_uri: str = setting("", "MLflow's model registry, where it is another server.")
    roots: tuple[ModelUri, ...] = setting(
        (),
        "Where models lie that callers may name by a path or a URI: directories, and how URIs "
        "begin, as in `models:/`. Without any, that is anywhere for the daemon's user alone, and "
        "nowhere where `[access]` lets others in, or a profile other than `dev` is set. Models "
        "that have a name are asked for by that in any case.",
    )
    repository: Location = setting(
        Location(""),
        "A folder of models that the daemon serves by their names, `NAME/VERSION/MLmodel` or "
        "`NAME/MLmodel`: the newest version, unless a request names another.",
    )
    check: bool = setting(
        default=False,
        meaning="Whether a model that is loaded before anybody asks has to answer its own input "
        "example first, as `envctl check` has it.",
    )


@dataclass(frozen=True, slots=True)
class Workers:
    """How models run, unless `[models.NAME]` says otherwise of one."""

    per_model: CountOrAuto = setting(
        1,
        "How many workers a model has while it is asked: a number, or `auto` for as many as its "
        "requests keep busy.",
    )
    template: bool = setting(
        True,  # noqa: FBT003
        "Whether workers may be forked from a process that has imported what they need.",
    )
    without_template: tuple[str, ...] = setting(
        (), "Environments, by how their ids begin, whose workers are never forked."
    )
    max_batch: Count = setting(
        Count(64), "How many requests one call of a model answers at most, where `batch` is set."
    )
    queue: Count = setting(Count(1000), "How many requests of one model wait at most.")
    concurrency: Count = setting(
        Count(16), "How many requests are with one worker at once; the others wait."
    )
    memory: Share = setting(
        Share("75%"),
        "What workers and templates may take together: a share of the machine's memory, or a size.",
    )
    max_requests: CountOrZero = setting(
        CountOrZero(0), "A worker that has answered so many is replaced; 0 sets no limit."
    )
    max_age: Seconds = setting(Seconds(math.inf), "A worker that is so old is replaced.")
    max_memory: Bytes = setting(Bytes(0), "A worker that takes more is replaced; 0 sets no limit.")
    idle_timeout: Seconds = setting(Seconds(900), "A worker unused for so long is stopped.")
    start_timeout: Seconds = setting(Seconds(120), "The longest a model may take to load.")
    stop_grace: Seconds = setting(Seconds(2), "Between asking a worker to stop and killing it.")
    network: Literal["auto", "on", "off"] = setting(
        "auto",
        "Whether models may use the network; `auto` is `off` in sandbox 1 and 2, and `on` in 0, "
        "which cannot keep them from it.",
    )
    readable: tuple[Location, ...] = setting(
        (), "What models may read besides themselves and their environments, in sandbox 1 and 2."
    )
    devices: tuple[Location, ...] = setting(
        (), "Devices they may use there, as in `/dev/nvidia*`; GPUs are none unless named here."
    )
    scratch: Bytes = setting(
        Bytes(1 << 30), "The size of a worker's /tmp and its /dev/shm, in memory, in sandbox 2."
    )
    memory_limit: Bytes = setting(
        Bytes(0), "The most memory a worker may take, which then ends it; 0 sets no limit."
    )
    cpu_limit: Cores = setting(Cores(0), "How many processors a worker may use; 0 for all.")
    process_limit: CountOrZero = setting(
        CountOrZero(0), "How many processes and threads a worker may have; 0 sets no limit."
    )
    time_limit: Seconds = setting(
        Seconds(math.inf),
        "The longest a request may take until its answer, or a stream until it begins, waiting "
        "included.",
    )
    max_log: Bytes = setting(
        Bytes(16 << 20), "The log of a model's workers is cut to its end when it is longer."
    )


@dataclass(frozen=True, slots=True)
class Daemon:
    """How the daemon listens and stops."""

    drain: Seconds = setting(Seconds(30), "How long SIGTERM waits for requests under way.")
    max_message: Bytes = setting(Bytes(64 << 20), "The largest request or answer.")
    max_in_parts: Bytes = setting(
        Bytes(1 << 30), "The largest input, or answer of `predict`, that comes in parts."
    )
    max_pause: Seconds = setting(
        Seconds(300),
        "How long a caller may pause within its input, or take nothing of an answer in parts.",
    )
    log_format: Literal["text", "json"] = setting(
        "text", "How its log is written: lines, or a JSON object in each."
    )
    metrics: Loopback = setting(
        Loopback(""), "Where Prometheus finds metrics, as in `127.0.0.1:9464`; none if empty."
    )
    grpc: Address = setting(
        Address(""),
        "Where gRPC is served over TCP as well, as in `127.0.0.1:8001`: the Open Inference "
        "Protocol, and where `[access]` tells callers apart, all that they may ask; nowhere if "
        "empty.",
    )
    max_in_flight: Bytes = setting(
        Bytes(512 << 20), "What the requests under way may hold together, in bytes of input."
    )


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask besides the user that the daemon runs as, and root."""

    group: str = setting(
        "",
        "The Unix group that may open the predict socket, and that of HTTP if it is one; nobody "
        "else if empty.",
    )
    admin_group: str = setting("", "The Unix group that may open the admin socket.")
    tls_cert: Location = setting(
        Location(""),
        "The certificate that TCP is served with, and those up to its CA: a PEM file. TLS is a "
        "must but on this machine's own addresses.",
    )
    tls_key: Location = setting(Location(""), "The key of that certificate: a PEM file.")
    client_ca: Location = setting(
        Location(""),
        "The CAs of clients, a PEM file: whoever connects over TCP needs a certificate of them.",
    )
    certificates: tuple[Grant, ...] = setting(
        (),
        "The roles of those certificates, `predict`, `build` or `admin`, by their alternative "
        'names: `{ "DNS:front.example" = "predict" }`, or `URI:`, or `email:`.',
    )
    tokens: Location = setting(
        Location(""),
        "A file of tokens, one of which callers over TCP send, where no certificate has a role: "
        "lines that `envctl token` makes, and only its owner can write.",
    )
    open: bool = setting(
        False,  # noqa: FBT003
        "Whether whoever reaches an address may ask there, without TLS and without a credential: "
        "for a network that something else guards, as that of a container.",
    )


@dataclass(frozen=True, slots=True)
class Http:
    """Where HTTP is served, and how much its clients are trusted."""

    listen: Listen = setting(
        Listen(""),
        "Where MLflow's HTTP is served, as in `127.0.0.1:5000`, or the path of a Unix socket; "
        "nowhere if empty.",
    )
    hosts: tuple[str, ...] = setting(
        (),
        "The names that requests over TCP may know it by (`Host`), and pages of which may ask it "
        "(`Origin`); this machine's own where nobody has to say who they are, any if none.",
    )
    model: str = setting(
        "", "The name of the model that `/invocations` asks; else the only one that has a name."
    )
    timeout: Seconds = setting(
        Seconds(60), "The longest a request may take, from its headers to the answer."
    )
    read_timeout: Seconds = setting(
        Seconds(10), "The longest headers may take, and a pause within a body."
    )
    idle_timeout: Seconds = setting(
        Seconds(75), "A connection on which nothing happens for so long is closed."
    )
    max_connections: Count = setting(Count(1000), "How many connections there are at once.")


@dataclass(frozen=True, slots=True)
class Gc:
    """What is kept, and for how long."""

    max_size: Bytes = setting(
        Bytes(50 * 10**9), "What environments and downloads may take together."
    )
    min_free: Share = setting(
        Share("5%"), "Free disk that is restored by removing what is unused: a share or a size."
    )
    unused_for: Seconds = setting(
        Seconds(30 * 86400), "An environment unused for so long is removed."
    )
    max_age: Seconds = setting(
        Seconds(math.inf), "An environment built so long ago is removed, used or not."
    )
    keep: CountOrZero = setting(
        CountOrZero(0), "How many of the environments used last are kept in any case."
    )
    grace: Seconds = setting(Seconds(3600), "An environment built within this time is kept.")
    interval: Seconds = setting(Seconds(3600), "How often the daemon looks for what to remove.")
