"""Making a remote store and finding one: what the server must prove, and one clear line for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from builder.remote import layout, setup, signing
from builder.remote.connect import RemoteFormat, connect, open_remote
from builder.remote.credentials import az_settings, gs_settings, s3_settings
from builder.remote.setup import CannotKeep, NotEmpty, init, probe
from builder.remote.signing import CryptographyMissing
from builder.remote.transport import (
    ExtraMissing,
    NoCredentials,
    NoRemoteStore,
    RemoteError,
    RemoteFull,
    Transport,
)
from builder.spec.sharing import Remote
from builder.store import seals
from tests.conftest import Sandbox
from tests.remote.team import Member, Stepping, member, started


@pytest.fixture
def ann(tmp_path: Path, lines: str) -> Member:
    return member(tmp_path / "ann", lines)


def test_a_store_is_made_once(ann: Member) -> None:
    with pytest.raises(NoRemoteStore):
        open_remote(ann.remote)
    transport = connect(ann.remote)
    assert all(check.ok for check in init(transport))
    made = transport.read(layout.FORMAT)
    assert all(check.ok for check in init(transport))
    assert transport.read(layout.FORMAT) == made
    assert [entry.path for entry in transport.list(layout.ROOT)] == [layout.FORMAT]  # no probe is left


def test_what_is_not_a_store_is_left_alone(ann: Member) -> None:
    transport = connect(ann.remote)
    if hasattr(transport, "root"):
        transport.root.mkdir()
    transport.write("v1/somebody", b"x")
    with pytest.raises(NotEmpty):
        init(transport)


def test_other_formats_and_damage(ann: Member) -> None:
    transport = started(ann)
    transport.write(layout.FORMAT, seals.sealed('{"format": 9}\n'))
    with pytest.raises(RemoteFormat, match="has format 9, this version knows 1"):
        open_remote(ann.remote)
    transport.write(layout.FORMAT, b"{}")
    with pytest.raises(RemoteError, match="v1/format is damaged"):
        open_remote(ann.remote)


class Careless:
    """A server that ignores every condition."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def create(self, path: str, data: bytes) -> bool:
        self._inner.write(path, data)
        return True

    def replace(self, path: str, former: bytes, data: bytes) -> bool:
        self._inner.write(path, data)
        return True


def test_a_server_that_ignores_conditions_is_found_out(tmp_path: Path) -> None:
    one = member(tmp_path / "ann", 'url = "../remote"')
    careless: Transport = Careless(connect(one.remote))  # type: ignore[assignment]
    found = {check.what: check.ok for check in init(careless)}
    assert found == {
        "write": True,
        "read": True,
        "list": True,
        "create": False,
        "replace": False,
        "delete": True,
    }
    said = seals.unsealed(careless.read(layout.FORMAT) or b"")
    assert json.loads(said or "")["creates"] is False


def test_a_store_is_not_made_where_nothing_can_be_written(tmp_path: Path) -> None:
    one = member(tmp_path / "ann", 'url = "../remote"')

    def full(step: str) -> None:
        if step.startswith("upload"):
            raise RemoteFull(remote="team", what="no space")

    with pytest.raises(CannotKeep, match="write: remote team is full: no space"):
        init(Stepping(connect(one.remote), full))  # type: ignore[arg-type]
    assert setup.probe is probe


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = member(tmp_path / "ann", 'url = "s3://models/x"')
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ExtraMissing, match='needs the extra "remote"'):
        connect(one.remote)
    with pytest.raises(CryptographyMissing):
        signing.new_signer()


def test_credentials_are_found_where_the_providers_clients_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote("team", "s3://models/x")
    with pytest.raises(NoCredentials):
        s3_settings(remote, {})
    both = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert s3_settings(remote, both) == {"region": "us-east-1"}  # obstore reads them itself
    assert s3_settings(remote, {"AWS_SKIP_SIGNATURE": "true"})["skip_signature"] is True
    (tmp_path / "credentials").write_text("[models]\naws_access_key_id = c\naws_secret_access_key = d\n")
    (tmp_path / "config").write_text(
        "[profile models]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:9000\n"
    )
    files = {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }
    expected = {
        "region": "eu-west-1",
        "endpoint": "http://127.0.0.1:9000",
        "virtual_hosted_style_request": False,
        "access_key_id": "c",
        "secret_access_key": "d",
    }
    assert s3_settings(remote, {**files, "AWS_PROFILE": "models"}) == expected
    named = Remote("team", "s3://models/x", profile="models", region="eu-north-1")
    assert s3_settings(named, {**files, **both}) == {**expected, "region": "eu-north-1"}
    with pytest.raises(NoCredentials, match="no credentials") as caught:
        s3_settings(Remote("team", "s3://models/x", profile="other"), files)
    assert 'The profile "other" in ~/.aws has no aws_access_key_id.' in str(caught.value)


def test_google_and_azure_without_credentials_are_refused_before_any_request(tmp_path: Path) -> None:
    google, azure = Remote("team", "gs://models/x"), Remote("team", "az://models/x")
    with pytest.raises(NoCredentials, match="gcloud auth application-default login"):
        gs_settings(google, {"HOME": str(tmp_path)})
    assert gs_settings(google, {"GOOGLE_APPLICATION_CREDENTIALS": "key.json"}) == {}
    assert gs_settings(google, {"GOOGLE_SKIP_SIGNATURE": "true", "HOME": str(tmp_path)}) == {}
    file = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert gs_settings(google, {"HOME": str(tmp_path)}) == {"application_credentials": str(file)}
    for given in ({}, {"AZURE_STORAGE_ACCOUNT_NAME": "a"}, {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}):
        with pytest.raises(NoCredentials, match="AZURE_STORAGE_ACCOUNT_NAME"):
            az_settings(azure, given)
    named = {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_SAS_TOKEN": "sv=1"}
    assert az_settings(azure, named) == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://models/kiln", {"GOOGLE_SKIP_SIGNATURE": "true"}),
        ("az://models/kiln", {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}),
    ],
)
def test_buckets_of_google_and_azure_are_addressed(
    url: str, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to them: there is no server here that speaks their language."""
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    transport = connect(Remote("team", url))
    assert transport.can_write
    assert transport.can_list
    store = transport._store  # type: ignore[attr-defined]
    assert store.prefix == "kiln"
    assert "models" in store.config.values()


def test_commands_say_what_is_missing(tmp_path: Path) -> None:
    one = member(tmp_path / "ann", 'url = "../remote"')
    box = Sandbox(one.file.parent)
    ran = box.builder("push")
    assert (ran.code, ran.err.splitlines()[0]) == (
        2,
        "ERROR: remote team: there is no store at ../remote. [NoRemoteStore]",
    )
    ran = box.builder("pull", "--remote", "teem")
    assert ran.code == 3
    assert 'declares no remote "teem"; did you mean "team"? [NoRemote]' in ran.err
    one.file.write_text(one.file.read_text().partition("[remote")[0])
    ran = box.builder("push")
    assert (ran.code, ran.err.splitlines()[0]) == (3, "ERROR: artifacts.toml declares no remote. [NoRemote]")
