"""Publishing to a hub: a stand-in on loopback that speaks the protocol of the hub's own client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.console.events import Note, silent
from builder.errors import BuildError
from builder.project.project import Project
from builder.publish.bundle import Plan
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.publish.publication import find, look, outcome, publish
from tests.publish.fake_hub import TOKEN, FakeHub, Repository, fake_hub
from tests.toy import DECLARATION, build, make_toy, prepared

PUBLISH = """
[publish.hub]
target = "m_4bit"
to = "hf://me/toy"
license = "mit"
base_model = "them/toy"
datasets = ["them/data"]
"""
REPO = "me/toy"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The client reads its variables when it is imported, so a test sets what came of them."""
    from huggingface_hub import constants

    from builder.publish import hub as publishing

    with fake_hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            made.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(publishing, "_WAITS", (0, 0))
        yield made


@pytest.fixture
def toy(tmp_path: Path) -> Project:
    project = prepared(make_toy(tmp_path / "project", DECLARATION + PUBLISH))
    build(project, "m_4bit")
    build(project, "m_8bit")
    return project


def sent(project: Project, notes: list[str] | None = None) -> Plan:
    def emit(event: object) -> None:
        if notes is not None and isinstance(event, Note):
            notes.append(event.text)

    return publish(project, find(project, "hub"), emit)


def edit(project: Project, old: str, new: str) -> Project:
    file = project.spec.file
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return Project.load(file)


def test_published_once_then_known(hub: FakeHub, toy: Project) -> None:
    planned = look(toy, find(toy, "hub"), silent)
    assert not planned.exists
    assert not hub.repositories, "a dry run changes nothing"
    made = sent(toy)
    assert made.changes == planned.changes
    repository = hub.repositories[REPO]
    assert repository.private
    assert len(repository.commits) == 2, "the commit of the server, and one of ours"
    files = hub.files(REPO)
    view = toy.store.models / "m_4bit"
    assert {name for name in files if name != ".gitattributes"} == {
        *(path.name for path in view.iterdir() if path.name != "artifact.toml"),
        "README.md",
        "attestation.json",
    }
    for path in view.glob("*.safetensors"):
        assert files[path.name] == path.read_bytes()
    said = json.loads(files["attestation.json"])
    assert all({"blake3", "sha256"} <= {*subject["digest"]} for subject in said["subject"])

    received = hub.received
    again = sent(toy)
    assert again.is_empty
    assert "all the same" in outcome(again)
    assert hub.received == received
    assert len(repository.commits) == 2


def test_the_card_is_what_the_hub_reads(hub: FakeHub, toy: Project) -> None:
    from huggingface_hub import ModelCard

    sent(toy)
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    data = card.data.to_dict()
    assert data["base_model"] == ["them/toy"]
    assert data["base_model_relation"] == "quantized"
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("mlx", "text-generation", "mit")
    assert data["datasets"] == ["them/data"]
    assert data["tags"] == ["mlx", "modelkiln", "lora", "4-bit"]
    assert 'load("me/toy")' in card.text


def test_another_variant_replaces_what_we_sent_and_nothing_else(hub: FakeHub, toy: Project) -> None:
    sent(toy)
    repository = hub.repositories[REPO]
    by_hand = {**repository.head[1], "NOTES.txt": b"by hand", "old.safetensors": b"ours once"}
    attested = json.loads(str(by_hand["attestation.json"], "utf-8"))  # type: ignore[arg-type]
    attested["subject"].append({"name": "old.safetensors", "digest": {}})
    by_hand["attestation.json"] = json.dumps(attested).encode()
    repository.commit(by_hand)
    made = sent(edit(toy, 'target = "m_4bit"', 'target = "m_8bit"'))
    assert made.named("delete") == ("old.safetensors",)
    assert "NOTES.txt" in hub.files(REPO)
    assert made.named("same"), "files that both variants share are not sent again"


def test_an_interrupted_upload_goes_on(hub: FakeHub, toy: Project) -> None:
    hub.faults = [(r"POST .*/commit/", 500)] * 3
    with pytest.raises(PlaceFailed, match="the hub answered 500"):
        sent(toy)
    assert set(hub.files(REPO)) == {".gitattributes"}, "nothing is seen of it"
    assert any(line.startswith("PUT") for line in hub.log)
    hub.log.clear()
    sent(toy)
    assert not any(line.startswith("PUT") for line in hub.log), "large files are on the server already"
    assert len(hub.files(REPO)) > 3


def test_a_busy_server_is_asked_again(hub: FakeHub, toy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits for a second or more
    for pattern in ("preupload", "objects/batch", "PUT /object", "/commit/", "tree"):
        hub.repositories.clear()
        hub.objects.clear()
        hub.faults = [(pattern, 503)]
        try:
            sent(toy)
        except PlaceFailed:  # questions are not repeated by the client
            assert pattern == "tree"
            sent(toy)
        assert not hub.faults
        assert len(hub.repositories[REPO].commits) == 2


def test_a_lost_answer_makes_no_second_commit(hub: FakeHub, toy: Project) -> None:
    hub.loses_answer = True
    sent(toy)
    assert len(hub.repositories[REPO].commits) == 2


def test_somebody_else_was_faster(hub: FakeHub, toy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from builder.publish.hub import Hub

    sent(toy)
    changed = edit(toy, 'license = "mit"', 'license = "apache-2.0"')
    send = Hub._send

    def meanwhile(self: Hub, *args: object) -> None:
        hub.repositories[REPO].commit({**hub.repositories[REPO].head[1], "theirs.txt": b"x"})
        send(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Hub, "_send", meanwhile)
    with pytest.raises(PlaceFailed, match="somebody else changed the repository meanwhile"):
        sent(changed)
    assert b"license: mit" in hub.files(REPO)["README.md"]


def test_a_server_that_lies_is_found_out(hub: FakeHub, toy: Project) -> None:
    hub.lies = True
    with pytest.raises(PlaceFailed, match="does not show config.json as it was sent"):
        sent(toy)


def test_a_repository_that_is_not_ours_stays(hub: FakeHub, toy: Project) -> None:
    hub.repositories[REPO] = Repository(False)
    hub.repositories[REPO].commit({".gitattributes": b"", "model.safetensors": b"theirs"})
    with pytest.raises(PlaceRefused, match="model.safetensors in it was not published by this program"):
        sent(toy)
    assert len(hub.repositories[REPO].commits) == 1
    hub.repositories[REPO].commit({".gitattributes": b"", "README.md": b"empty"})
    notes: list[str] = []
    sent(toy, notes)
    assert "hf://me/toy is public, and stays public" in notes


def test_no_token_and_no_rights(hub: FakeHub, toy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere")
    theirs = edit(toy, "hf://me/toy", "hf://they/toy")
    for token, said in (
        (None, "no such token"),
        ("hf_wrong", "no such token"),
        (TOKEN, "no right to write there"),
    ):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(BuildError, match=said) as caught:
            sent(theirs)
        assert "hf auth login" in str(caught.value)
        assert not token or token not in str(caught.value)
        assert len(caught.value.message.splitlines()) == 1
