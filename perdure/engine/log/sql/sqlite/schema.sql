-- The whole schema as it stands: the sum of the migrations, for reading. A test proves that they are equal.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE tenants (
    tenant_key INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE agents (
    agent_key INTEGER PRIMARY KEY,
    tenant_key INTEGER NOT NULL REFERENCES tenants (tenant_key),
    agent TEXT NOT NULL,
    partition INTEGER NOT NULL,
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    type TEXT NOT NULL,
    labels TEXT NOT NULL CHECK (json_valid(labels)),
    data_key BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    UNIQUE (tenant_key, agent)
);

-- Rows stand in commit order (the rowid), so the big tree only ever grows at its right edge and its pages are full. Tried against
-- WITHOUT ROWID on (partition, offset), which takes half again as much room, and against a composed integer key, which is as slow.
CREATE TABLE events (
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    agent_key INTEGER NOT NULL REFERENCES agents (agent_key),
    version INTEGER NOT NULL,
    tenant_key INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    id BLOB NOT NULL,
    type TEXT NOT NULL,
    time_us INTEGER NOT NULL,
    causation BLOB,
    correlation TEXT,
    trace TEXT,
    project TEXT,
    module TEXT,
    chain BLOB NOT NULL,
    payload BLOB NOT NULL
);
CREATE UNIQUE INDEX events_by_offset ON events (partition, offset);
CREATE UNIQUE INDEX events_by_version ON events (agent_key, version);
CREATE UNIQUE INDEX events_by_id ON events (agent_key, id);
-- Few rows: it tells at once whether an agent is fenced.
CREATE INDEX events_of_ownership ON events (agent_key, version) WHERE type IN ('perdure.owned', 'perdure.fenced');

CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are never changed');
END;

CREATE TABLE documents (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (scope, name)
);

CREATE TABLE blobs (
    tenant TEXT NOT NULL,
    name BLOB NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- A lease that was given back or ran out keeps its row: the row remembers the epoch.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    expires_us INTEGER NOT NULL
);

-- Snapshots that are whole and readable: a row is written only after its manifest and chunks were read back, and is what makes them count.
-- damage: what was found wrong later; such a row is kept for the report, never used, and no longer in the way of another.
CREATE TABLE snapshots (
    id BLOB PRIMARY KEY,
    agent_key INTEGER NOT NULL REFERENCES agents (agent_key),
    version INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    verified_us INTEGER NOT NULL,
    plain_bytes INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    written_bytes INTEGER NOT NULL,
    tenant_key INTEGER NOT NULL REFERENCES tenants (tenant_key),
    epoch INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    permanent INTEGER NOT NULL,
    critical INTEGER NOT NULL,
    replaces BLOB,
    kind TEXT NOT NULL,
    trigger TEXT NOT NULL,
    creator TEXT NOT NULL,
    codec TEXT NOT NULL,
    manifest TEXT NOT NULL,
    manifest_digest BLOB NOT NULL,
    chain BLOB NOT NULL,
    state_digest BLOB NOT NULL,
    damage TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX snapshots_good ON snapshots (agent_key, version) WHERE damage = '';
CREATE INDEX snapshots_by_agent ON snapshots (agent_key, version, id);
CREATE INDEX snapshots_by_tenant ON snapshots (tenant_key, id);

-- Where an agent's events begin once older ones were removed: the first version that is there, and what stood just before it.
CREATE TABLE floors (
    agent_key INTEGER PRIMARY KEY REFERENCES agents (agent_key),
    tenant_key INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    version INTEGER NOT NULL,
    chain BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    offset INTEGER NOT NULL
);
CREATE INDEX floors_by_partition ON floors (partition, tenant_key, offset);

-- The ids of removed events, so that an append that is repeated long after is still known.
CREATE TABLE removed_events (
    agent_key INTEGER NOT NULL,
    id BLOB NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (agent_key, id)
) WITHOUT ROWID;

CREATE TRIGGER removed_events_are_known BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM removed_events WHERE agent_key = NEW.agent_key AND id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'this event was removed');
END;

-- The agents of a node that was lost are found without looking at all others. An agent that nobody owns is not in it.
CREATE INDEX agents_by_owner ON agents (owner, agent_key) WHERE owner <> '';

-- An agent that goes on from another one's version: versions 1 to parent_version are events of its past, its own begin after it. parent_key:
-- the agent that it was forked from. past_key: the one whose own event parent_version is, which may be an ancestor of that (NULL for version
-- 0). Offset, time, epoch and chain hash are that event's, so that nothing has to be read where the fork goes on. Never changed.
ALTER TABLE agents ADD COLUMN parent_key INTEGER REFERENCES agents (agent_key);
ALTER TABLE agents ADD COLUMN past_key INTEGER REFERENCES agents (agent_key);
ALTER TABLE agents ADD COLUMN parent_version INTEGER;
ALTER TABLE agents ADD COLUMN parent_offset INTEGER;
ALTER TABLE agents ADD COLUMN parent_time_us INTEGER;
ALTER TABLE agents ADD COLUMN parent_epoch INTEGER;
ALTER TABLE agents ADD COLUMN parent_chain BLOB;
CREATE INDEX agents_by_parent ON agents (parent_key, agent) WHERE parent_key IS NOT NULL;
CREATE INDEX agents_by_past ON agents (past_key, parent_version) WHERE past_key IS NOT NULL;
