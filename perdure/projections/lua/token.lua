-- The meta field of a whole state, or false: KEYS[1] is the agent's hash. Field and length are read at one moment.
local meta = redis.call('HGET', KEYS[1], 'm')
if not meta then return false end
local count, more = string.match(meta, '^%d+:%d+:%d+:(%d+)(.*)$')
if not count or redis.call('HLEN', KEYS[1]) ~= tonumber(count) + 1 then return false end
if more ~= '' and not string.match(more, '^:%d+:%x*$') then return false end
return meta
