"""What is shown of a text that holds a credential."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from envd import config, secrets
from envd.run import env_file
from envd.secrets import Secret, hide
from envd.settings import values
from envd.settings.served import Served

URL = "https://me:pass@host/t/tok3n/simple?sig=abc"
SHOWN = "https://***@host/t/***/simple?***"
TEXT = f"""
[index]
urls = ["{URL}", "https://host/simple"]
find_links = ["https://me:pass@host/pages"]
[conda]
channel_alias = "https://host/t/tok3n"
mirrors = {{ conda-forge = "https://host/t/tok3n/conda-forge" }}
auth_file = "/etc/auth.json"
[models]
tracking_uri = "https://me:pass@host"
[models.one]
uri = "s3://key:pass@bucket/one"
env = {{ KEY = "pass" }}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (URL, SHOWN),
        ("name=http://me:pa/s@s@host:80/x and http://b:c@d", "name=http://***@host:80/x and http://***@d"),
        ("conda-forge=https://host/a/t/token/b", "conda-forge=https://host/a/t/***/b"),
        ("https://host/t/tok3n", "https://host/t/***"),
        ("no `https://host/t/tok3n` (https://h/t/tok3n), https://h/t/tok3n: 403",
         "no `https://host/t/***` (https://h/t/***), https://h/t/***: 403"),
        ("https://host/t/tok3n?sig=abc", "https://host/t/***?***"),
        ("(https://host/a?sig=a'b)c&d='e', or", "(https://host/a?***', or"),
        ("http://me:80.pass@host http://me:8!pa/ss@host http://me:443,pass@host",
         "http://***@host http://***@host http://***@host"),
        ("http://host:80/a@b http://host:80?c@d", "http://host:80/a@b http://host:80?***"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("/srv/t/token/a@b?c", "/srv/t/token/a@b?c"),
        ("models:/wine@champion", "models:/wine@champion"),
    ],
)  # fmt: skip
def test_of_a_url_all_is_shown_but_its_credentials(text: str, expected: str) -> None:
    assert hide(text) == expected
    assert hide(expected) == expected


@pytest.mark.parametrize(
    ("url", "login", "credentials", "token"),
    [
        (URL, "https://host/t/tok3n/simple?sig=abc", "https://host/simple", "tok3n"),
        ("https://host/a?b#c", "https://host/a?b#c", "https://host/a#c", ""),
        ("own=https://me:p@host/a", "own=https://host/a", "own=https://host/a", ""),
        ("https://host/t/tok3n", "https://host/t/tok3n", "https://host", "tok3n"),
        # Not surely a token: a channel may be called so.
        ("https://host/a/t/b", "https://host/a/t/b", "https://host/a/t/b", ""),
        ("https://host/a@b#c@d", "https://host/a@b#c@d", "https://host/a@b#c@d", ""),
        ("conda-forge", "conda-forge", "conda-forge", ""),
    ],
)
def test_a_url_is_asked_for_without_its_credentials(
    url: str, login: str, credentials: str, token: str
) -> None:
    assert secrets.without_login(url) == login
    assert secrets.without_credentials(url) == credentials
    assert secrets.token(url) == token


@pytest.mark.parametrize(
    ("channel", "shown"),
    [
        ("https://me:p@host/t/tok3n/mine", "https://host/t/***/mine"),
        ("t/tok3n/mine", "t/***/mine"),
        ("/srv/channels/at/home", "/srv/channels/at/home"),
        ("conda-forge", "conda-forge"),
    ],
)
def test_a_channel_is_shown_without_its_token(channel: str, shown: str) -> None:
    assert secrets.without_token(channel) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("htps//me:pass@host", "***@host"),
        ("https://me:p@ss@host/a", "https://***@host/a"),
        ("https://host/t/tok3n/a?sig=abc", "https://host/t/***/a?***"),
        (["me:pass@host", 3], ["***@host", 3]),
        ({"KEY": "pass"}, {"KEY": "***"}),
        (3, 3),
    ],
)
def test_what_no_setting_takes_is_told_without_what_may_be_secret(
    value: object, shown: object
) -> None:
    assert secrets.cut(value) == shown


def test_the_credentials_of_a_url_are_nowhere_in_a_message_about_it() -> None:
    url = "https://me:p%2Fss@host/t/tok3n/a"

    assert secrets.redact(f"no {url}: p/ss, tok3n", url) == "no https://***@host/t/***/a: ***, ***"
    assert secrets.of(["https://host/pages?sig=a%2Fb#top"]) == {"sig=a%2Fb", "sig=a/b"}
    assert secrets.redact("no https://b:c@d/?e=f") == "no https://***@d/?***"


@pytest.mark.parametrize(("whole", "shown"), [(URL, SHOWN), ("s3cret", "***"), ("", "***")])
def test_a_secret_is_shown_nowhere_by_itself(whole: str, shown: str) -> None:
    secret = Secret(whole)

    for text in (str(secret), f"{secret}", "%s" % secret, "{}".format(secret)):  # noqa: UP031, UP032
        assert text == shown
    assert repr([secret]) == f"[{shown!r}]"
    assert f"{secret:>40}" == f"{shown:>40}"


def test_a_secret_is_the_text_for_whoever_uses_it() -> None:
    secret = Secret(URL)

    for same in (secret.reveal(), copy.deepcopy(secret), pickle.loads(pickle.dumps(secret))):
        assert same == secret == URL
        assert hash(same) == hash(URL)
    assert type(secret.reveal()) is str
    assert json.loads(json.dumps({"a": secret})) == {"a": URL}
    assert secret.partition("@")[0] == "https://me:pass"


@pytest.mark.parametrize(
    ("value", "written", "shown"),
    [
        (Secret(URL), URL, SHOWN),
        ((Secret(URL),), URL, SHOWN),
        (("a", Secret("b")), "a,b", "a,***"),
        ((), "", ""),
        (True, "true", "true"),
        (math.inf, "never", "never"),
    ],
)
def test_a_value_is_written_whole_and_shown_without_its_secrets(
    value: object, written: str, shown: str
) -> None:
    assert values.write(value) == written
    assert f"{values.write(value)}" == written
    assert values.show(value) == shown


def test_settings_that_hold_credentials_do_not_show_them(tmp_path: Path) -> None:
    file = tmp_path / "envd.toml"
    file.write_text(TEXT)
    read = config.load(root=tmp_path, file=file, environ={})
    passed_on = config.from_document(json.loads(json.dumps(config.document(read))))

    for settings in (read, passed_on, replace(read), copy.deepcopy(read)):
        assert settings == read
        assert settings.index.urls[0] == URL
        assert settings.served[0].env == (("KEY", "pass"),)
        for text in (repr(settings), f"{settings}", str(asdict(settings))):
            assert "pass" not in text
            assert "tok3n" not in text
            assert "abc" not in text
            assert "https://host/simple" in text


def test_what_a_variable_sets_is_guarded_as_well(tmp_path: Path) -> None:
    environ = {"ENVD_INDEX__URLS": f"https://host/simple,{URL}", "ENVD_MODELS__REGISTRY_URI": URL}
    settings = config.load(root=tmp_path, environ=environ)

    assert [type(one) for one in settings.index.urls] == [str, Secret]
    assert type(settings.models.registry_uri) is Secret


def test_variables_of_a_file_are_secret(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("KEY=s3cret\n")
    file.chmod(0o600)

    found = env_file.read(str(file))

    assert found == {"KEY": "s3cret"}
    assert repr(found) == "{'KEY': '***'}"
    assert repr(Served("one", env=tuple(found.items()))).count("s3cret") == 0  # type: ignore[arg-type]


def test_the_secrets_of_a_url_are_taken_out_of_a_line_in_any_spelling() -> None:
    known = secrets.of(["https://me:p%2Fss@host/t/tok3n/simple", "https://alone@host"])

    assert secrets.without("p/ss p%2Fss tok3n alone", known) == "*** *** *** ***"
    assert secrets.without("me:p%2Fss", known) == "***"
