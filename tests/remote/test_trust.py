"""Signed texts: who is believed, where a key may lie, and what strangers cannot do."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from builder.build.pulling import pull_targets
from builder.build.sharing import fetch
from builder.remote import layout, signing
from builder.remote.push import push
from builder.remote.signing import SigningKeyInvalid, is_signed, new_signer, own_signer, public_line
from builder.remote.transport import Transport
from builder.store import records, seals
from tests.conftest import Sandbox
from tests.remote.team import TARGETS, Heard, Member, forget_remotes, member, started, wrong_here

LINES = 'url = "../remote"'


@pytest.fixture
def ann(tmp_path: Path) -> Member:
    return member(tmp_path / "ann", LINES, *TARGETS)


def reader(folder: Path, *keys: str) -> Member:
    trust = "\n".join(f'k{number} = "{key}"' for number, key in enumerate(keys))
    return member(folder, f"{LINES}\n[remote.team.trust]\n{trust}")


def state(one: Member, target: str = "m_4bit") -> str:
    forget_remotes()
    return pull_targets(one.project, [target], [one.remote], Heard(), dry_run=False)[0].state


def pushed(ann: Member, *, signed: bool) -> Transport:
    transport = started(ann)
    push(ann.store, transport, ann.bundles(), own_signer() if signed else None, Heard())
    return transport


def test_only_what_a_trusted_key_signed_is_pulled(ann: Member, tmp_path: Path) -> None:
    signer = new_signer()
    pushed(ann, signed=True)
    other = signing.Signer(Ed25519PrivateKey.generate())
    assert state(reader(tmp_path / "ben", public_line(other), public_line(signer))) == "built"
    assert state(reader(tmp_path / "eve", public_line(other))) == "not there"


def test_what_nobody_signed_is_refused_until_it_is_signed(ann: Member, tmp_path: Path) -> None:
    transport = pushed(ann, signed=False)
    signer = new_signer()
    ben = reader(tmp_path / "ben", public_line(signer))
    heard = Heard()
    fetch(ben.project, [ben.plan("m_4bit")], heard)
    assert any("not signed by a key that is trusted" in note for note in heard.notes), heard.notes
    assert state(ben) == "not there"
    sent = push(ann.store, transport, ann.bundles(), own_signer(), Heard())
    assert (sent.blobs, len(sent.sign) > 10) == ((), True)
    assert push(ann.store, transport, ann.bundles(), own_signer(), Heard()).is_empty
    assert state(ben) == "built"
    assert wrong_here(ben.store) == []


def test_a_signature_holds_for_its_bytes_and_its_place_only(ann: Member, tmp_path: Path) -> None:
    signer = new_signer()
    transport = pushed(ann, signed=True)
    ben = reader(tmp_path / "ben", public_line(signer))
    mine, his = layout.manifest(ann.plan("m_4bit").key), layout.manifest(ann.plan("m_8bit").key)
    text, other = transport.read(mine), transport.read(his)
    assert text is not None
    assert other is not None
    envelope = signer.sign(mine, text)
    assert is_signed(envelope, mine, text, signer.public)
    assert not is_signed(envelope, his, text, signer.public)
    assert not is_signed(envelope, mine, other, signer.public)
    said = json.loads(envelope)
    said["payload"] = base64.b64encode(base64.b64decode(said["payload"]).replace(b"4", b"5")).decode()
    for wrong in (json.dumps(said).encode(), b"", b"[]", b'{"payload": 3}', envelope[:-20]):
        assert not is_signed(wrong, mine, text, signer.public)
    body = seals.unsealed(text)
    assert body is not None
    transport.write(mine, seals.sealed(body.replace('name = "m_4bit"', 'name = "m_5bit"')))
    heard = Heard()
    fetch(ben.project, [ben.plan("m_4bit")], heard)
    assert records.read_manifest(ben.store, ben.plan("m_4bit").key) is None
    assert any("not signed" in note for note in heard.notes)


def test_openssl_would_agree(ann: Member) -> None:
    """The envelope is DSSE: the signature is over its pre-authentication encoding."""
    signer = new_signer()
    envelope = json.loads(signer.sign("v1/targets/x.toml", b"text"))
    payload = base64.b64decode(envelope["payload"])
    encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    signer.key.public_key().verify(signature, encoded)
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [s["name"] for s in statement["subject"]] == ["v1/targets/x.toml"]


def test_where_a_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_signer() is None
    made = new_signer()
    place = signing.key_place()
    assert place.is_relative_to(tmp_path)
    assert place.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SigningKeyInvalid, match="there is one already"):
        new_signer()
    same = own_signer()
    assert same is not None
    assert same.id == made.id
    monkeypatch.setenv("BUILDER_SIGNING_KEY", place.read_text())  # a secret of CI
    assert own_signer().id == made.id  # type: ignore[union-attr]
    monkeypatch.setenv("BUILDER_SIGNING_KEY", str(tmp_path / "none"))
    with pytest.raises(SigningKeyInvalid, match="No such file"):
        own_signer()
    (tmp_path / "none").write_text("words")
    with pytest.raises(SigningKeyInvalid, match="it is not a private key"):
        own_signer()


def test_keys_of_ssh_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")], check=True
        )
    except OSError:
        pytest.skip("ssh-keygen is not installed")
    monkeypatch.setenv("BUILDER_SIGNING_KEY", str(tmp_path / "id"))
    signer = own_signer()
    assert signer is not None
    assert (tmp_path / "id.pub").read_text().startswith(public_line(signer))


def test_the_command(ann: Member, tmp_path: Path) -> None:
    box = Sandbox(ann.file.parent)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    made = box.builder("trust", "--new", env=env)
    line, trusts = made.out.splitlines()
    assert trusts == "team trusts everybody who may write there"
    assert line.startswith("ssh-ed25519 AAAA")
    former = ann.file.read_text()
    assert box.builder("trust", "ann", line, env=env).code == 0
    assert ann.file.read_text().startswith(former.rstrip())
    assert json.loads(box.builder("trust", "--json", env=env).out)["trusted"] == {"team": {"ann": line}}


@pytest.mark.slow
def test_what_is_not_a_key_is_refused(ann: Member, tmp_path: Path) -> None:
    box = Sandbox(ann.file.parent)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    said = box.builder("trust", env=env).out.splitlines()[0]
    assert said == "You have no key, so what you push is not signed. `builder trust --new` makes one."
    ran = box.builder("trust", "ci", "ssh-ed25519 nonsense", env=env)
    assert (ran.code, ran.err.splitlines()[0]) == (
        3,
        'ERROR: "ssh-ed25519 nonsense" is not a public key of Ed25519. [NotAKey]',
    )
