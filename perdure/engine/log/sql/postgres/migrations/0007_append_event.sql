
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
