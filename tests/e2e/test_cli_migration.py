"""Moving agents by the command, between nodes that are processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.request import Request, urlopen

import pytest

from tests.fix_command import Perdure

HANDLER = "perdure.recovery.handlers:talk"
END_TIMEOUT_S = 60.0
LEASE_S = "60"
"""No node shall be lost here, however busy the machine is while the others start."""


@contextmanager
def node(perdure: Perdure, name: str) -> Iterator[str]:
    """A node in a process of its own; its address."""
    process = perdure.start("host", "--node", name, "--handler", HANDLER, "--lease-s", LEASE_S, "--json")
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        try:
            process.communicate(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def say(address: str, agent: str) -> int:
    body = json.dumps({"body": {"say": "hello"}}).encode()
    request = Request(f"{address}/v1/tenants/default/agents/{agent}/commands", body, {"content-type": "application/json"})
    with urlopen(request, timeout=END_TIMEOUT_S) as answer:
        version: int = json.load(answer)["version"]
        return version


@pytest.fixture
def nodes(perdure_command: Perdure) -> Iterator[dict[str, str]]:
    perdure_command("init")
    with ExitStack() as stack:
        yield {name: stack.enter_context(node(perdure_command, name)) for name in ("north", "south")}


def test_agents_are_moved_back_and_drained_by_the_command(perdure_command: Perdure, nodes: dict[str, str]) -> None:
    version = say(nodes["north"], "a-1")
    say(nodes["north"], "a-2")
    planned = perdure_command("migrate", "plan", "a-1", "--to", "south", "--json").json
    assert planned["obstacles"] == []
    assert planned["plan"]["source"] == "north"
    done = perdure_command("migrate", "run", "a-1", "--to", "south", "--reason", "try", "--json").json["migration"]
    assert (done["phase"], done["integrity"]) == ("committed", "verified")
    assert done["version"] == version + 1
    assert say(nodes["south"], "a-1") == version + 2
    refused = perdure_command("migrate", "run", "a-1", "--to", "south", "--json", code=2)
    assert "already" in refused.error["message"]
    assert perdure_command("migrate", "run", "a-1", "--to", "west", "--json", code=2).error["hint"]
    assert "committed" in perdure_command("migrate", "show", done["id"]).out
    assert perdure_command("migrate", "rollback", done["id"], "--check", "--json").json["ok"] is True
    assert perdure_command("migrate", "rollback", done["id"], "--json").json["migration"]["target"] == "north"
    assert perdure_command("migrate", "abort", done["id"], "--json", code=4).error["code"] == "conflict"
    drained = perdure_command("migrate", "drain", "north", "--json").json
    assert (drained["moved"], drained["left"], drained["ok"]) == (2, 0, True)
    assert [row["state"] for row in perdure_command("recover", "nodes", "--json").json["nodes"]] == ["alive"] * 2
    assert {row["target"] for row in perdure_command("migrate", "list", "--json").json["migrations"]} == {"south"}
    assert perdure_command("verify", "--json").json["ok"] is True
