-- One step of one agent's state: compare the token, then write cells and token together.
--
-- KEYS[1]  the agent's hash
-- ARGV     expected version ('' = replace whatever is older, whole), generation, epoch, version, count, ttl in ms (0 = for ever),
--          name of the layout, build (0 = the one that stands), number of puts n, then n × (field, value), then the fields to remove
-- returns  the meta field that stands afterwards ('generation:epoch:version:count:build:layout'), or false where there is no whole state
--
-- All decisions come before the first write: a script that Redis refuses (out of memory, read-only replica) has changed nothing.

-- Lua's unpack is limited by its C stack (about 8 000); the chunk is even, so that no pair of field and value is torn.
local CHUNK = 4000
local FIRST = 10
local key = KEYS[1]
local expected = ARGV[1]
local generation, epoch, version, count = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local ttl_ms, layout, build, puts = tonumber(ARGV[6]), ARGV[7], ARGV[8], tonumber(ARGV[9])

local function read_meta()
  local meta = redis.call('HGET', key, 'm')
  if not meta then return nil end
  local g, e, v, n, b, l = string.match(meta, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%x*)$')
  if not g then
    g, e, v, n = string.match(meta, '^(%d+):(%d+):(%d+):(%d+)$')
    b, l = '0', ''
  end
  if not g or redis.call('HLEN', key) ~= tonumber(n) + 1 then return nil end
  return meta, tonumber(g), tonumber(e), tonumber(v), b, l
end

local meta, stored_generation, stored_epoch, stored_version, stored_build, stored_layout = read_meta()
if meta then
  local newer = generation > stored_generation
    or (generation == stored_generation and (epoch > stored_epoch or (epoch == stored_epoch and version > stored_version)))
  if not newer then return meta end
  if build == '0' or tonumber(stored_build) > tonumber(build) then build = stored_build end
end
if expected ~= '' then
  if not meta then return false end
  -- A step never crosses generations: a restored log may hold other events under the same versions. Nor whole writes: its names are another's.
  if stored_generation ~= generation or stored_version ~= tonumber(expected) or stored_layout ~= layout then return meta end
end

local written = ARGV[2] .. ':' .. ARGV[3] .. ':' .. ARGV[4] .. ':' .. ARGV[5]
-- What is of no build is written as it was before there were builds, where nobody names a layout.
if build ~= '0' or layout ~= '' then written = written .. ':' .. build .. ':' .. layout end
if expected == '' then
  -- Redis refuses for want of memory only what comes before a script's first write, and never a DEL: so ask with a HSET before it.
  redis.call('HSET', key, 'm', written)
  redis.call('DEL', key)
end
local last = FIRST - 1 + 2 * puts
for first = FIRST, last, CHUNK do
  redis.call('HSET', key, unpack(ARGV, first, math.min(first + CHUNK - 1, last)))
end
if expected ~= '' then
  for first = last + 1, #ARGV, CHUNK do
    redis.call('HDEL', key, unpack(ARGV, first, math.min(first + CHUNK - 1, #ARGV)))
  end
end
redis.call('HSET', key, 'm', written)
if redis.call('HLEN', key) ~= count + 1 then
  -- What stood was not what the writer took it for; a miss is rebuilt from the log, a wrong state is not.
  redis.call('DEL', key)
  return false
end
if ttl_ms > 0 then redis.call('PEXPIRE', key, ttl_ms) end
return written
