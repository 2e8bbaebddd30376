"""Numbered migrations: order, checksums, and that schema.sql is their sum."""

from __future__ import annotations

import sqlite3

import pytest

from perdure.engine.log import migrations
from perdure.errors import ConfigurationError, IntegrityError

TWO = {"0001_log.sql": "CREATE TABLE a (x);\n", "0002_more.sql": "CREATE TABLE b (x);\n"}


def _schema(sql: str) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(sql)
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name").fetchall()
    connection.close()
    return rows


def test_schema_of_sqlite_equals_the_sum_of_its_migrations():
    whole = (migrations.folder("sqlite") / "schema.sql").read_text("utf-8")
    assert _schema(whole) == _schema("".join(migration.sql for migration in migrations.load("sqlite")))


def test_migrations_come_in_order_with_their_checksums():
    first, second = migrations.parse(TWO)
    assert (first.number, first.name, second.number, second.name) == (1, "log", 2, "more")
    assert len(first.checksum) == 64
    assert first.checksum != second.checksum


def test_checksum_does_not_depend_on_line_ends():
    windows = {name: text.replace("\n", "\r\n") for name, text in TWO.items()}
    assert migrations.parse(windows) == migrations.parse(TWO)


@pytest.mark.parametrize("names", [[], ["0002_a.sql"], ["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"], ["first.sql"]])
def test_incomplete_or_misnamed_files_are_refused(names: list[str]):
    with pytest.raises(ConfigurationError):
        migrations.parse(dict.fromkeys(names, "SELECT 1;"))


def test_pending_are_those_the_log_has_not_had():
    both = migrations.parse(TWO)
    assert migrations.pending(both, {}) == both
    assert migrations.pending(both, {1: both[0].checksum}) == both[1:]
    assert migrations.pending(both, {1: both[0].checksum, 2: both[1].checksum}) == ()


def test_edited_migration_is_an_integrity_error():
    with pytest.raises(IntegrityError, match="migration 1"):
        migrations.pending(migrations.parse(TWO), {1: "0" * 64})


def test_log_with_a_hole_in_its_migrations_is_an_integrity_error():
    with pytest.raises(IntegrityError):
        migrations.pending(migrations.parse(TWO), {2: "0" * 64})


def test_log_of_a_newer_program_is_refused_with_a_hint():
    with pytest.raises(ConfigurationError) as caught:
        migrations.pending(migrations.parse(TWO), {1: "a", 2: "b", 3: "c"})
    assert "upgrade" in caught.value.hint


def test_statements_keep_a_trigger_whole():
    script = "-- why\n\nCREATE TABLE a (x);\nCREATE TRIGGER t BEFORE UPDATE ON a\nBEGIN\n    SELECT 1;\nEND;\n"
    assert [statement.split()[1] for statement in migrations.statements(script)] == ["TABLE", "TRIGGER"]


def test_unfinished_statement_is_refused():
    with pytest.raises(ConfigurationError):
        list(migrations.statements("CREATE TABLE a (x"))
