"""A second `perdure migrate rebalance` soon after the first says why it moves nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from perdure.cli.migrate_many import _level, _lines, _reported, _resting
from perdure.cli.options import Options
from perdure.migration.fleet import FleetReport
from perdure.migration.leveling import Level

UNTIL = datetime(2026, 1, 31, 11, 59, 59, 500_000, UTC)
RESTED = Level([], {"north": 3.0, "south": 1.0}, {"north": 3.0, "south": 1.0})
RESTING = RESTED._replace(resting=2, rest_until=UNTIL)
LINE = "2 agents rest until about 12:00:00Z, being moved or moved within the last minute"


def test_agents_that_rest_are_counted_with_the_time_until_when(capsys: pytest.CaptureFixture[str]) -> None:
    assert _lines(RESTING).splitlines()[-1] == LINE
    assert _resting(RESTING._replace(resting=1)) == [LINE.replace("2 agents rest", "1 agent rests")]
    assert _reported(FleetReport("group"), {"level": _level(RESTING)}, Options(), _resting(RESTING)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"  {LINE}"
    _reported(FleetReport("group"), {"level": _level(RESTING)}, Options(json=True), _resting(RESTING))
    told = json.loads(capsys.readouterr().out)["level"]
    assert (told["resting"], told["rest_until"]) == (2, "2026-01-31T11:59:59.500000Z")


def test_nothing_is_said_where_none_rests() -> None:
    assert _lines(RESTED).splitlines()[-1] == "0 moves"
    assert (_level(RESTED)["resting"], _level(RESTED)["rest_until"]) == (0, None)
