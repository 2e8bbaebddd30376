
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
