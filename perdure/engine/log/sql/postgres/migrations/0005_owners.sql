
-- The agents of a node that was lost are found without looking at all others. An agent that nobody owns is not in it.
CREATE INDEX agents_by_owner ON agents (owner, agent_key) WHERE owner <> '';
