"""Keys from the shell: looked at, rotated, moved."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

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


def test_a_key_file_that_is_gone_is_told_apart_from_damage_and_no_other_is_made(perdure_command: Perdure) -> None:
    for tenant in ("acme", "other"):
        perdure_command("append", "a", "--set", "/n=1", "--tenant", tenant)
    file = perdure_command.folder / "perdure-state" / "keys" / "root.key"
    aside = file.rename(perdure_command.folder / "root.key")
    for words in ((), ("--last",)):
        report = perdure_command("verify", *words, "--json", code=7).json
        assert report["ok"] is False
    report = perdure_command("verify", "--json", code=7).json
    assert (report["damaged"], report["log"]["events"], report["log"]["agents_unread"], report["log"]["problems"]) == (False, 2, 2, [])
    assert [reason.partition(":")[0] for reason in report["log"]["missing_keys"]] == ["acme", "other"]
    assert "KEYS ARE MISSING" in perdure_command("verify", code=7).out
    listed = perdure_command("keys", "list", "--json").json
    assert (listed["root_key"], {one["state"] for one in listed["keys"]}) == (None, {"key_unavailable"})
    findings = perdure_command("doctor", "--json", code=6).json["findings"]
    assert [(each["what"], each["ok"]) for each in findings if not each["ok"]] == [("keys", False)]
    assert perdure_command("append", "a", "--set", "/n=1", "--tenant", "third", "--json", code=7).error["code"] == "key_unavailable"
    for words in (("init",), ("backup", "create", "--to", f"file://{perdure_command.folder}/backups")):
        assert perdure_command(*words, "--json", code=7).error["code"] == "key_unavailable"
    assert not file.exists()
    aside.rename(file)
    assert perdure_command("verify", "--json").json["ok"] is True


def test_damage_is_told_before_missing_keys(perdure_command: Perdure) -> None:
    for tenant in ("acme", "other"):
        perdure_command("append", "a", "--set", "/n=1", "--tenant", tenant)
    folder = perdure_command.folder / "perdure-state"
    with closing(sqlite3.connect(folder / "log.db")) as log, log:
        log.execute("DROP TRIGGER events_are_never_changed")
        log.execute("UPDATE events SET type = 'another' WHERE agent_key = 1")
    (folder / "keys" / "root.key").unlink()
    report = perdure_command("verify", "--json", code=5).json
    assert (report["damaged"], report["log"]["agents_unread"], report["log"]["problem_count"]) == (True, 2, 1)


def test_init_makes_the_root_key(perdure_command: Perdure) -> None:
    for _ in range(2):
        perdure_command("init")
        assert (perdure_command.folder / "perdure-state" / "keys" / "root.key").exists()
