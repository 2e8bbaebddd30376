
-- An agent that goes on from another one's version: versions 1 to parent_version are events of its past, its own begin after it. parent_key:
-- the agent that it was forked from. past_key: the one whose own event parent_version is, which may be an ancestor of that (NULL for version
-- 0). Offset, time, epoch and chain hash are that event's, so that nothing has to be read where the fork goes on. Never changed.
ALTER TABLE agents
  ADD COLUMN parent_key bigint REFERENCES agents,
  ADD COLUMN past_key bigint REFERENCES agents,
  ADD COLUMN parent_version bigint,
  ADD COLUMN parent_offset bigint,
  ADD COLUMN parent_time_us bigint,
  ADD COLUMN parent_epoch bigint,
  ADD COLUMN parent_chain bytea;
CREATE INDEX agents_by_parent ON agents (parent_key, agent) WHERE parent_key IS NOT NULL;
CREATE INDEX agents_by_past ON agents (past_key, parent_version) WHERE past_key IS NOT NULL;
