-- The log. Appends only insert: no counter row and no head row is ever updated, so an open snapshot elsewhere costs nothing.
CREATE TABLE meta (
  name text PRIMARY KEY,
  value bigint NOT NULL
);

CREATE TABLE tenants (
  tenant_key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE
);

-- Changes at a hand-over only; whoever changes owner or epoch holds the partition's lock.
CREATE TABLE agents (
  agent_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_key integer NOT NULL REFERENCES tenants,
  agent text COLLATE "C" NOT NULL,
  partition integer NOT NULL,
  first_segment integer NOT NULL,
  owner text NOT NULL DEFAULT '',
  epoch bigint NOT NULL DEFAULT 0,
  type text NOT NULL DEFAULT '',
  labels jsonb NOT NULL DEFAULT '{}',
  data_key bytea NOT NULL,
  created_us bigint NOT NULL,
  UNIQUE (tenant_key, agent)
);

-- Which later segments hold events of an agent, and from which version on: one row an agent and segment, written with its first event there.
CREATE TABLE agent_segments (
  agent_key bigint NOT NULL,
  segment integer NOT NULL,
  first_version bigint NOT NULL,
  PRIMARY KEY (agent_key, segment)
);

-- Columns stand by width, so that nothing is padded.
CREATE TABLE events (
  agent_key bigint NOT NULL,
  "offset" bigint NOT NULL,
  time_us bigint NOT NULL,
  version integer NOT NULL,
  epoch integer NOT NULL,
  tenant_key integer NOT NULL,
  partition integer NOT NULL,
  id uuid NOT NULL,
  causation uuid,
  type text NOT NULL,
  chain bytea NOT NULL,
  correlation text,
  trace text,
  project text,
  module text,
  payload bytea NOT NULL
) PARTITION BY LIST (partition);

CREATE TABLE documents (
  scope text NOT NULL,
  name text NOT NULL,
  revision bigint NOT NULL,
  value bytea NOT NULL,
  PRIMARY KEY (scope, name)
);

CREATE TABLE blobs (
  tenant text NOT NULL,
  name bytea NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (tenant, name)
);
ALTER TABLE blobs ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE TABLE leases (
  name text PRIMARY KEY,
  holder text NOT NULL,
  epoch bigint NOT NULL,
  expires timestamptz NOT NULL
);

-- Readers on behalf of a tenant work under this role and see that tenant's rows alone.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'perdure_reader') THEN
    CREATE ROLE perdure_reader NOLOGIN;
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL; -- another database of this server was made at the same moment
END $$;
DO $$
BEGIN
  IF NOT pg_has_role(current_user, 'perdure_reader', 'MEMBER') THEN
    EXECUTE format('GRANT perdure_reader TO %I', current_user);
  END IF;
END $$;

CREATE FUNCTION current_tenant_key() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS
  $$ SELECT nullif(current_setting('perdure.tenant_key', true), '')::integer $$;

-- A table's rows of one tenant, for the reading role. A partition that is read by its own name needs its own policy.
CREATE FUNCTION show_to_tenant(p_table text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', p_table);
  EXECUTE format('CREATE POLICY tenant ON %I FOR SELECT TO perdure_reader USING (tenant_key = current_tenant_key())', p_table);
  EXECUTE format('GRANT SELECT ON %I TO perdure_reader', p_table);
END $$;

-- A segment is made beside the log and attached: that takes no lock which an append or a reader would wait for.
CREATE FUNCTION ensure_segment(p_partition integer, p_segment integer, p_offsets bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  v_parent text := format('events_%s', p_partition);
  v_name text := format('events_%s_%s', p_partition, p_segment);
BEGIN
  IF to_regclass(v_name) IS NOT NULL THEN
    RETURN false;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext(current_schema() || '.segments'), p_partition);
  -- Asked of the catalog itself: a cached "not there" may be older than the lock.
  IF EXISTS (SELECT FROM pg_class WHERE relname = v_name AND relnamespace = current_schema()::regnamespace) THEN
    RETURN false;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_class WHERE relname = v_parent AND relnamespace = current_schema()::regnamespace) THEN
    EXECUTE format('CREATE TABLE %I PARTITION OF events FOR VALUES IN (%s) PARTITION BY RANGE ("offset")', v_parent, p_partition);
    PERFORM show_to_tenant(v_parent);
  END IF;
  EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING DEFAULTS)', v_name);
  EXECUTE format('ALTER TABLE %I ALTER COLUMN payload SET STORAGE EXTERNAL, ALTER COLUMN chain SET STORAGE PLAIN', v_name);
  EXECUTE format('ALTER TABLE %I ADD CHECK (partition = %s AND "offset" >= %s AND "offset" < %s)',
    v_name, p_partition, p_segment * p_offsets + 1, (p_segment + 1) * p_offsets + 1);
  EXECUTE format('CREATE UNIQUE INDEX %I ON %I ("offset")', v_name || '_offset', v_name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON %I (agent_key, version)', v_name || '_version', v_name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id, agent_key)', v_name || '_id', v_name);
  PERFORM show_to_tenant(v_name);
  EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
    v_parent, v_name, p_segment * p_offsets + 1, (p_segment + 1) * p_offsets + 1);
  RETURN true;
END $$;

-- The append of a writer that believes to know where its partitions stand. It locks them, in the order given (ascending), and inserts; when
-- somebody else wrote since, the offsets are taken and the unique index refuses, so nothing has to be read first. Returns the server's clock;
-- NULL, with nothing written, when the events' time is too far behind it (the writer was asleep).
CREATE FUNCTION append_events(
  p_lock integer, p_partitions integer[], p_now_us bigint, p_patience_us bigint,
  r_agent bigint[], r_offset bigint[], r_time bigint[], r_version integer[], r_epoch integer[], r_tenant integer[], r_partition integer[],
  r_id uuid[], r_causation uuid[], r_type text[], r_chain bytea[], r_correlation text[], r_trace text[], r_project text[], r_module text[],
  r_payload bytea[], s_agent bigint[], s_segment integer[], s_version bigint[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_clock_us bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock, p.partition) FROM unnest(p_partitions) p(partition);
  v_clock_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  IF v_clock_us - p_now_us > p_patience_us THEN
    RETURN NULL;
  END IF;
  INSERT INTO events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
                      correlation, trace, project, module, payload)
  SELECT * FROM unnest(r_agent, r_offset, r_time, r_version, r_epoch, r_tenant, r_partition, r_id, r_causation, r_type, r_chain,
                       r_correlation, r_trace, r_project, r_module, r_payload);
  IF cardinality(s_agent) > 0 THEN
    INSERT INTO agent_segments (agent_key, segment, first_version)
    SELECT * FROM unnest(s_agent, s_segment, s_version) ON CONFLICT DO NOTHING;
  END IF;
  RETURN v_clock_us;
END $$;

SELECT show_to_tenant('events'), show_to_tenant('agents');
GRANT SELECT ON agent_segments, tenants TO perdure_reader;
DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO perdure_reader', current_schema()); END $$;

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

-- Where an agent's events begin once older ones were removed: the first version that is there, and what stood just before it.
CREATE TABLE floors (
  agent_key bigint PRIMARY KEY REFERENCES agents,
  version bigint NOT NULL,
  time_us bigint NOT NULL,
  "offset" bigint NOT NULL,
  tenant_key integer NOT NULL REFERENCES tenants,
  partition integer NOT NULL,
  epoch integer NOT NULL,
  chain bytea NOT NULL
);
CREATE INDEX floors_by_partition ON floors (partition, tenant_key, "offset");

-- The ids of removed events, so that an append that is repeated long after is still known.
CREATE TABLE removed_events (
  agent_key bigint NOT NULL,
  version bigint NOT NULL,
  id uuid NOT NULL,
  PRIMARY KEY (agent_key, id)
);

-- As before, and events of removed ids are refused as the unique index refuses those that are there.
CREATE OR REPLACE FUNCTION append_events(
  p_lock integer, p_partitions integer[], p_now_us bigint, p_patience_us bigint,
  r_agent bigint[], r_offset bigint[], r_time bigint[], r_version integer[], r_epoch integer[], r_tenant integer[], r_partition integer[],
  r_id uuid[], r_causation uuid[], r_type text[], r_chain bytea[], r_correlation text[], r_trace text[], r_project text[], r_module text[],
  r_payload bytea[], s_agent bigint[], s_segment integer[], s_version bigint[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_clock_us bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock, p.partition) FROM unnest(p_partitions) p(partition);
  v_clock_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  IF v_clock_us - p_now_us > p_patience_us THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM floors WHERE agent_key = ANY (r_agent)) THEN
    IF EXISTS (SELECT FROM unnest(r_agent, r_id) n(agent_key, id) JOIN removed_events USING (agent_key, id)) THEN
      RAISE unique_violation USING MESSAGE = 'this event was removed';
    END IF;
  END IF;
  INSERT INTO events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
                      correlation, trace, project, module, payload)
  SELECT * FROM unnest(r_agent, r_offset, r_time, r_version, r_epoch, r_tenant, r_partition, r_id, r_causation, r_type, r_chain,
                       r_correlation, r_trace, r_project, r_module, r_payload);
  IF cardinality(s_agent) > 0 THEN
    INSERT INTO agent_segments (agent_key, segment, first_version)
    SELECT * FROM unnest(s_agent, s_segment, s_version) ON CONFLICT DO NOTHING;
  END IF;
  RETURN v_clock_us;
END $$;

-- Takes away at most p_limit of an agent's events below its floor, oldest first; how many. Under the partition's lock: an append sees an id
-- either in the log or among the removed, never in neither.
CREATE FUNCTION remove_events(p_lock integer, p_partition integer, p_agent bigint, p_limit integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_floor bigint;
  v_removed bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock, p_partition);
  v_floor := (SELECT version FROM floors WHERE agent_key = p_agent);
  EXECUTE format('WITH gone AS (
      DELETE FROM %1$I WHERE agent_key = $1 AND version < $2
        AND version < (SELECT version FROM %1$I WHERE agent_key = $1 ORDER BY version LIMIT 1) + $3
      RETURNING agent_key, version, id),
    kept AS (INSERT INTO removed_events SELECT agent_key, version, id FROM gone ON CONFLICT DO NOTHING)
    SELECT count(*) FROM gone', format('events_%s', p_partition)) USING p_agent, v_floor, p_limit INTO v_removed;
  RETURN v_removed;
END $$;

SELECT show_to_tenant('floors');

-- A tenant's row is never removed. Checking that it is there cost as much as all the rest of making an agent, and locked it for each.
ALTER TABLE agents DROP CONSTRAINT agents_tenant_key_fkey;

-- The agents of a node that was lost are found without looking at all others. An agent that nobody owns is not in it.
CREATE INDEX agents_by_owner ON agents (owner, agent_key) WHERE owner <> '';

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

-- What one event needs, without the arrays: whoever appends alone waits for nothing else. As `append_events` of one row; p_segment: where this
-- is the agent's first event in a later segment, else NULL.
CREATE FUNCTION append_event(
  p_lock integer, p_partition integer, p_now_us bigint, p_patience_us bigint, p_agent bigint, p_offset bigint, p_version integer,
  p_epoch integer, p_tenant integer, p_id uuid, p_causation uuid, p_type text, p_chain bytea, p_correlation text, p_trace text,
  p_project text, p_module text, p_payload bytea, p_segment integer
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_clock_us bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock, p_partition);
  v_clock_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  IF v_clock_us - p_now_us > p_patience_us THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM floors WHERE agent_key = p_agent) THEN
    IF EXISTS (SELECT FROM removed_events WHERE agent_key = p_agent AND id = p_id) THEN
      RAISE unique_violation USING MESSAGE = 'this event was removed';
    END IF;
  END IF;
  INSERT INTO events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
                      correlation, trace, project, module, payload)
  VALUES (p_agent, p_offset, p_now_us, p_version, p_epoch, p_tenant, p_partition, p_id, p_causation, p_type, p_chain,
          p_correlation, p_trace, p_project, p_module, p_payload);
  IF p_segment IS NOT NULL THEN
    INSERT INTO agent_segments (agent_key, segment, first_version) VALUES (p_agent, p_segment, p_version) ON CONFLICT DO NOTHING;
  END IF;
  RETURN v_clock_us;
END $$;

-- As before, but without a constraint that repeats the bounds of the partition: each append read and compiled it anew. An empty table is attached
-- as fast without, and the bounds hold whichever table is named.
CREATE OR REPLACE FUNCTION ensure_segment(p_partition integer, p_segment integer, p_offsets bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  v_parent text := format('events_%s', p_partition);
  v_name text := format('events_%s_%s', p_partition, p_segment);
BEGIN
  IF to_regclass(v_name) IS NOT NULL THEN
    RETURN false;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext(current_schema() || '.segments'), p_partition);
  -- Asked of the catalog itself: a cached "not there" may be older than the lock.
  IF EXISTS (SELECT FROM pg_class WHERE relname = v_name AND relnamespace = current_schema()::regnamespace) THEN
    RETURN false;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_class WHERE relname = v_parent AND relnamespace = current_schema()::regnamespace) THEN
    EXECUTE format('CREATE TABLE %I PARTITION OF events FOR VALUES IN (%s) PARTITION BY RANGE ("offset")', v_parent, p_partition);
    PERFORM show_to_tenant(v_parent);
  END IF;
  EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING DEFAULTS)', v_name);
  EXECUTE format('ALTER TABLE %I ALTER COLUMN payload SET STORAGE EXTERNAL, ALTER COLUMN chain SET STORAGE PLAIN', v_name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON %I ("offset")', v_name || '_offset', v_name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON %I (agent_key, version)', v_name || '_version', v_name);
  EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id, agent_key)', v_name || '_id', v_name);
  PERFORM show_to_tenant(v_name);
  EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
    v_parent, v_name, p_segment * p_offsets + 1, (p_segment + 1) * p_offsets + 1);
  RETURN true;
END $$;

-- The append of a writer that others were faster than. As `append_events`, but it reads what others wrote after the offsets the writer knows (p_known,
-- one for each partition), and puts the rows behind that, at offsets that are greater by as many. It returns what it read, in no order, so that the
-- writer knows where everything is. Nothing is written where the rows would no longer be true: others wrote to one of their agents, at a later time,
-- more than p_tail_max events, or events that were removed since; or the rows do not fit into their segments (p_segments, which end at p_ends). A
-- clock of NULL means what NULL means above.
-- For a single partition the tail is read before the lock is taken: if somebody writes in between, the offsets are taken and the index refuses.
CREATE FUNCTION append_after(
  p_lock integer, p_partitions integer[], p_known bigint[], p_segments integer[], p_ends bigint[], p_tail_max integer,
  p_now_us bigint, p_patience_us bigint,
  r_agent bigint[], r_offset bigint[], r_time bigint[], r_version integer[], r_epoch integer[], r_tenant integer[], r_partition integer[],
  r_id uuid[], r_causation uuid[], r_type text[], r_chain bytea[], r_correlation text[], r_trace text[], r_project text[], r_module text[],
  r_payload bytea[], s_agent bigint[], s_segment integer[], s_version bigint[],
  OUT clock_us bigint, OUT written boolean, OUT t_partition integer[], OUT t_offset bigint[], OUT t_time bigint[], OUT t_agent bigint[],
  OUT t_version integer[], OUT t_epoch integer[], OUT t_type text[], OUT t_chain bytea[]
) LANGUAGE plpgsql AS $$
DECLARE
  v_alone boolean := cardinality(p_partitions) = 1;
  v_tails text;
  v_by bigint[] := array_fill(0::bigint, ARRAY[cardinality(p_partitions)]);
  v_time bigint[] := v_by;
  v_at integer;
BEGIN
  written := false;
  FOR n IN 1 .. cardinality(p_partitions) LOOP
    v_tails := concat(v_tails || ' UNION ALL ', '(SELECT partition, "offset", time_us, agent_key, version, epoch, type, chain FROM events_',
      p_partitions[n], '_', p_segments[n], ' WHERE "offset" > ', p_known[n], ' ORDER BY "offset" LIMIT ', p_tail_max + 1, ')');
  END LOOP;
  v_tails := concat('SELECT array_agg(t.partition), array_agg(t."offset"), array_agg(t.time_us), array_agg(t.agent_key), array_agg(t.version), '
    'array_agg(t.epoch), array_agg(t.type), array_agg(t.chain) FROM (', v_tails, ') t');
  IF v_alone THEN
    EXECUTE v_tails INTO t_partition, t_offset, t_time, t_agent, t_version, t_epoch, t_type, t_chain;
  END IF;
  IF v_alone AND pg_try_advisory_xact_lock(p_lock, p_partitions[1]) THEN
    NULL;
  ELSE
    PERFORM pg_advisory_xact_lock(p_lock, p.partition) FROM unnest(p_partitions) p(partition);
    EXECUTE v_tails INTO t_partition, t_offset, t_time, t_agent, t_version, t_epoch, t_type, t_chain;
  END IF;
  clock_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  IF EXISTS (SELECT FROM unnest(p_partitions, p_known) n(partition, known) JOIN floors f ON f.partition = n.partition AND f."offset" > n.known) THEN
    RETURN;
  END IF;
  IF t_agent IS NOT NULL THEN
    IF cardinality(t_agent) > p_tail_max OR t_agent && r_agent THEN
      RETURN;
    END IF;
    FOR n IN 1 .. cardinality(t_agent) LOOP
      v_at := array_position(p_partitions, t_partition[n]);
      v_by[v_at] := greatest(v_by[v_at], t_offset[n] - p_known[v_at]);
      v_time[v_at] := greatest(v_time[v_at], t_time[n]);
    END LOOP;
    IF EXISTS (
      SELECT FROM unnest(r_partition, r_offset, r_time) r(partition, "offset", time_us), array_position(p_partitions, r.partition) at
      WHERE r.time_us < v_time[at] OR r."offset" + v_by[at] > p_ends[at]
    ) THEN
      RETURN;
    END IF;
  END IF;
  clock_us := append_events(p_lock, p_partitions, p_now_us, p_patience_us, r_agent,
    ARRAY(SELECT r."offset" + v_by[array_position(p_partitions, r.partition)]
          FROM unnest(r_partition, r_offset) WITH ORDINALITY r(partition, "offset", number) ORDER BY r.number),
    r_time, r_version, r_epoch, r_tenant, r_partition, r_id, r_causation, r_type, r_chain, r_correlation, r_trace, r_project, r_module,
    r_payload, s_agent, s_segment, s_version);
  written := clock_us IS NOT NULL;
END $$;

-- Offsets whose events were removed are free for the index, but a writer that does not know those events must not use them. The two functions are as
-- before, and refuse it.
CREATE INDEX floors_by_offset ON floors (partition, "offset");

CREATE OR REPLACE FUNCTION append_events(
  p_lock integer, p_partitions integer[], p_now_us bigint, p_patience_us bigint,
  r_agent bigint[], r_offset bigint[], r_time bigint[], r_version integer[], r_epoch integer[], r_tenant integer[], r_partition integer[],
  r_id uuid[], r_causation uuid[], r_type text[], r_chain bytea[], r_correlation text[], r_trace text[], r_project text[], r_module text[],
  r_payload bytea[], s_agent bigint[], s_segment integer[], s_version bigint[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_clock_us bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock, p.partition) FROM unnest(p_partitions) p(partition);
  v_clock_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  IF v_clock_us - p_now_us > p_patience_us THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM unnest(r_partition, r_offset) n(partition, "offset") JOIN floors f ON f.partition = n.partition AND f."offset" >= n."offset") THEN
    RAISE unique_violation USING MESSAGE = 'what stood here was removed';
  END IF;
  IF EXISTS (SELECT FROM floors WHERE agent_key = ANY (r_agent)) THEN
    IF EXISTS (SELECT FROM unnest(r_agent, r_id) n(agent_key, id) JOIN removed_events USING (agent_key, id)) THEN
      RAISE unique_violation USING MESSAGE = 'this event was removed';
    END IF;
  END IF;
  INSERT INTO events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
                      correlation, trace, project, module, payload)
  SELECT * FROM unnest(r_agent, r_offset, r_time, r_version, r_epoch, r_tenant, r_partition, r_id, r_causation, r_type, r_chain,
                       r_correlation, r_trace, r_project, r_module, r_payload);
  IF cardinality(s_agent) > 0 THEN
    INSERT INTO agent_segments (agent_key, segment, first_version)
    SELECT * FROM unnest(s_agent, s_segment, s_version) ON CONFLICT DO NOTHING;
  END IF;
  RETURN v_clock_us;
END $$;

CREATE OR REPLACE FUNCTION append_event(
  p_lock integer, p_partition integer, p_now_us bigint, p_patience_us bigint, p_agent bigint, p_offset bigint, p_version integer,
  p_epoch integer, p_tenant integer, p_id uuid, p_causation uuid, p_type text, p_chain bytea, p_correlation text, p_trace text,
  p_project text, p_module text, p_payload bytea, p_segment integer
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_clock_us bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock, p_partition);
  v_clock_us := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  IF v_clock_us - p_now_us > p_patience_us THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM floors WHERE partition = p_partition AND "offset" >= p_offset) THEN
    RAISE unique_violation USING MESSAGE = 'what stood here was removed';
  END IF;
  IF EXISTS (SELECT FROM floors WHERE agent_key = p_agent) THEN
    IF EXISTS (SELECT FROM removed_events WHERE agent_key = p_agent AND id = p_id) THEN
      RAISE unique_violation USING MESSAGE = 'this event was removed';
    END IF;
  END IF;
  INSERT INTO events (agent_key, "offset", time_us, version, epoch, tenant_key, partition, id, causation, type, chain,
                      correlation, trace, project, module, payload)
  VALUES (p_agent, p_offset, p_now_us, p_version, p_epoch, p_tenant, p_partition, p_id, p_causation, p_type, p_chain,
          p_correlation, p_trace, p_project, p_module, p_payload);
  IF p_segment IS NOT NULL THEN
    INSERT INTO agent_segments (agent_key, segment, first_version) VALUES (p_agent, p_segment, p_version) ON CONFLICT DO NOTHING;
  END IF;
  RETURN v_clock_us;
END $$;
