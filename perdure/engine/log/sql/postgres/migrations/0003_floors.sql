
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
