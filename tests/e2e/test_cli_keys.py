"""Keys from the shell: looked at, rotated, moved."""

from __future__ import annotations

from collections.abc import Callable

from tests.fix_command import Perdure
from tests.fix_vault import VaultServer


def test_a_tenants_key_is_rotated_and_everything_stays_readable(perdure_command: Perdure) -> None:
    perdure_command("append", "a", "--set", "/n=1", "--tenant", "acme")
    done = perdure_command("keys", "rotate", "--all", "--json").json
    assert [(one["tenant"], one["previous"], one["version"], one["rewrapped"]) for one in done["rotated"]] == [("acme", 1, 2, 1)]
    after = perdure_command("keys", "rotate", "--root", "--json").json
    assert after["tenants"] == ["acme"]
    listed = perdure_command("keys", "list", "--json").json
    assert listed["root_key"] == after["key_id"]
    assert [(one["tenant"], one["version"], one["root_keys"], one["state"]) for one in listed["keys"]] == [
        ("acme", 2, {"1": after["key_id"], "2": after["key_id"]}, "ok")
    ]
    assert perdure_command("show", "a", "--tenant", "acme", "--json").json["document"] == {"n": 1}
    assert perdure_command("keys", "rotate", "--tenant", "nobody", "--json", code=7).error["code"] == "key_unavailable"


def test_the_root_key_moves_into_vault(vault_server: Callable[..., VaultServer], perdure_command: Perdure) -> None:
    server = vault_server()
    perdure_command("append", "a", "--set", "/n=1")
    denied = perdure_command("show", "a", "--keys", server.url(), "--json", code=7)
    assert "--moved-from" in denied.error["hint"]
    file = f"file://{perdure_command.folder}/perdure-state/keys/root.key"
    moved = perdure_command("keys", "rotate", "--root", "--keys", server.url(), "--moved-from", file, "--json").json
    assert (moved["key_id"], moved["tenants"]) == ("perdure", ["default"])
    assert perdure_command("show", "a", "--keys", server.url(), "--json").json["document"] == {"n": 1}
    findings = perdure_command("doctor", "--keys", server.url(), "--json").json["findings"]
    assert findings[-1] == {"what": "keys", "ok": True, "says": "wraps and unwraps", "hint": ""}
