-- One agent's cut-over: what a build made becomes what is read, or nothing changes.
--
-- KEYS[1]  the agent's hash that is read; KEYS[2] the one that the build made
-- ARGV     number of the build, ttl in ms (0 = for ever)
-- returns  {outcome, the meta field that is read afterwards or false}: done, over (of this build or a later one already), behind (what is read
--          is newer), nothing (nothing was built)

local function read_meta(key)
  local meta = redis.call('HGET', key, 'm')
  if not meta then return nil end
  local g, e, v, n, more = string.match(meta, '^(%d+):(%d+):(%d+):(%d+)(.*)$')
  if not g or redis.call('HLEN', key) ~= tonumber(n) + 1 then return nil end
  local b = '0'
  if more ~= '' then b = string.match(more, '^:(%d+):%x*$') end
  if not b then return nil end
  return meta, tonumber(g), tonumber(e), tonumber(v), tonumber(b)
end

local meta, generation, epoch, version, build = read_meta(KEYS[1])
if meta and build >= tonumber(ARGV[1]) then
  redis.call('UNLINK', KEYS[2])
  return {'over', meta}
end
local built, built_generation, built_epoch, built_version = read_meta(KEYS[2])
if not built then return {'nothing', meta or false} end
if meta then
  local newer = generation > built_generation
    or (generation == built_generation and (epoch > built_epoch or (epoch == built_epoch and version > built_version)))
  if newer then return {'behind', meta} end
end
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[2], KEYS[1])
if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) else redis.call('PERSIST', KEYS[1]) end
return {'done', built}
