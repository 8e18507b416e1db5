-- Detaches a hold from its claim, so that whoever knows a secret can go on with it: see attach.lua.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 token, 3 digest of the secret, 4 lease_ms,
--       5 bury_until_us (0: no packet of this claim is unanswered), 6 channels (see hand_off.lua)
-- Answers: released | lost ended
-- The owner becomes nobody's claim, so a late packet of the hold does nothing, and a copy of this
-- one finds what it has written. PEXPIRE comes first, so that the script also works at maxmemory.
--@include keys
--@include now
--@include grant
--@include hand_off
local claim, token, lease_ms, channels = ARGV[1], ARGV[2], ARGV[4], ARGV[6]
local detached = 'detached:' .. ARGV[3] .. ':' .. claim
local held = call('HMGET', lock, 'owner', 'token')
local ours = held[2] == token and (held[1] == claim or held[1] == detached)
if ours and held[1] == claim then
  local sooner = tonumber(lease_ms) < call('PTTL', lock)
  call('PEXPIRE', lock, lease_ms)
  call('HDEL', lock, 'operation', 'count')
  call('HSET', lock, 'owner', detached, 'lease', lease_ms)
  call('PEXPIRE', fence, FENCE_TTL_MS)
  if sooner then
    ring_first_to_look(channels)
  end
end
if ARGV[5] ~= '0' then
--@include bury
  bury(claim, tonumber(ARGV[5]))
end
if not ours then
  return answer('lost', call('HGET', fence, 'ended') or '0')
end
return answer('released')
