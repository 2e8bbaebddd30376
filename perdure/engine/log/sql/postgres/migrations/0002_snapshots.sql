
-- Snapshots that are whole and readable: a row is written only after its manifest and chunks were read back, and is what makes them count.
-- damage: what was found wrong later; such a row is kept for the report, never used, and no longer in the way of another.
CREATE TABLE snapshots (
  id uuid PRIMARY KEY,
  agent_key bigint NOT NULL REFERENCES agents,
  version bigint NOT NULL,
  created_us bigint NOT NULL,
  time_us bigint NOT NULL,
  expires_us bigint NOT NULL,
  verified_us bigint NOT NULL,
  plain_bytes bigint NOT NULL,
  stored_bytes bigint NOT NULL,
  written_bytes bigint NOT NULL,
  tenant_key integer NOT NULL REFERENCES tenants,
  epoch integer NOT NULL,
  generation integer NOT NULL,
  chunks integer NOT NULL,
  permanent boolean NOT NULL,
  critical boolean NOT NULL,
  replaces uuid,
  kind text NOT NULL,
  trigger text NOT NULL,
  creator text NOT NULL,
  codec text NOT NULL,
  manifest text NOT NULL,
  manifest_digest bytea NOT NULL,
  chain bytea NOT NULL,
  state_digest bytea NOT NULL,
  damage text NOT NULL
);
CREATE UNIQUE INDEX snapshots_good ON snapshots (agent_key, version) WHERE damage = '';
CREATE INDEX snapshots_by_agent ON snapshots (agent_key, version, id);
CREATE INDEX snapshots_by_tenant ON snapshots (tenant_key, id);

SELECT show_to_tenant('snapshots');
