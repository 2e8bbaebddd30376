
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
