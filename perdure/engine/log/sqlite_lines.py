"""What an agent of the SQLite log goes on from. The functions block."""

from __future__ import annotations

import sqlite3
from typing import Final

from perdure.engine.log.records import Parent, Past
from perdure.limits import FORK_DEPTH_MAX

__all__ = ["line_of"]

_PARENT: Final = """
SELECT n.agent, a.parent_version, coalesce(p.partition, -1), a.parent_offset, a.parent_time_us, a.parent_epoch, a.parent_chain
FROM agents a JOIN agents n ON n.agent_key = a.parent_key LEFT JOIN agents p ON p.agent_key = a.past_key WHERE a.agent_key = ?
"""
_LINE: Final = f"""
WITH RECURSIVE line (depth, agent, agent_key, partition, version, past_key, before) AS (
  SELECT 1, p.agent, p.agent_key, p.partition, a.parent_version, p.past_key, p.parent_version
  FROM agents a JOIN agents p ON p.agent_key = a.past_key WHERE a.agent_key = ?
  UNION ALL
  SELECT l.depth + 1, p.agent, p.agent_key, p.partition, l.before, p.past_key, p.parent_version
  FROM line l JOIN agents p ON p.agent_key = l.past_key WHERE l.depth < {FORK_DEPTH_MAX})
SELECT agent, agent_key, partition, version FROM line ORDER BY depth
"""  # noqa: S608 - an integer


def line_of(connection: sqlite3.Connection, agent_key: int) -> tuple[Parent, tuple[Past, ...]]:
    """A fork's parent and past."""
    (parent,) = connection.execute(_PARENT, (agent_key,)).fetchall()
    return Parent(*parent), tuple(Past(*past) for past in connection.execute(_LINE, (agent_key,)).fetchall())
