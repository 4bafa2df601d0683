"""What tests/conftest.py promises of all other tests: no network, and nothing written into the checkout."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import state_of_the_checkout

ELSEWHERE = "192.0.2.1"  # TEST-NET-1 of RFC 5737: nobody's address
Refused = pytest.fail.Exception


@pytest.mark.parametrize("host", [ELSEWHERE, "huggingface.co"])
def test_a_connection_to_another_machine_fails_the_test(host: str) -> None:
    with pytest.raises(Refused, match=f"a test asks the network for {host}"):
        socket.create_connection((host, 443))
    with socket.socket() as connection:
        with pytest.raises(Refused):
            connection.connect((host, 443))
        with pytest.raises(Refused):
            connection.connect_ex((host, 443))


def test_code_that_takes_any_error_for_offline_does_not_hide_it() -> None:
    with pytest.raises(Refused, match="a test asks the network"):
        try:
            socket.create_connection((ELSEWHERE, 443))
        except Exception:
            pytest.fail("hidden")  # pragma: no cover


def test_this_machine_can_be_talked_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_the_hub_is_offline() -> None:
    from huggingface_hub import constants

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE


def test_what_is_written_into_a_checkout_is_seen(tmp_path: Path) -> None:
    assert state_of_the_checkout(tmp_path) is None
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("/store\n.*.db\n/cache\n")
    (tmp_path / "store").mkdir()
    before = state_of_the_checkout(tmp_path)
    assert before == {".gitignore": "??"}
    (tmp_path / "cache").write_text("ignored by git, and nothing of ours")
    assert state_of_the_checkout(tmp_path) == before
    for name in ("notes", "store/version", ".modelkiln.db"):
        (tmp_path / name).write_text("x")
        state = state_of_the_checkout(tmp_path) or {}
        assert set(state) == {*before, name}
        (tmp_path / name).unlink()
