
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
