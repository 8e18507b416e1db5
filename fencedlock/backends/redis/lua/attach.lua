-- Makes a claim the owner of a detached hold, with the token that the hold has: see detach.lua.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 digest of the secret, 3 not_after_us, 4 holder, 5 lease_ms,
--       6 channels (see hand_off.lua)
-- Answers: granted now_us token ttl_ms abandoned | gone | late now_us
-- A copy of a packet gets the same answer, and shortens no lease.
--@include keys
--@include now
--@include grant
--@include hand_off
local claim, lease_ms = ARGV[1], tonumber(ARGV[5])
if now_us > tonumber(ARGV[3]) then
  return answer('late', now)
end
local held = call('HMGET', lock, 'owner', 'token', 'abandoned')
local owner, detached = held[1] or '', 'detached:' .. ARGV[2] .. ':'
local ttl_ms = call('PTTL', lock)
if owner == claim then
  lease_ms = math.max(lease_ms, ttl_ms)
elseif string.sub(owner, 1, #detached) ~= detached then
  return answer('gone')
end
call('PEXPIRE', lock, lease_ms)
if owner ~= claim then
  call('HDEL', lock, 'lease')
  call('HSET', lock, 'owner', claim, 'holder', ARGV[4])
  call('PEXPIRE', fence, FENCE_TTL_MS)
  if lease_ms < ttl_ms then
    ring_first_to_look(ARGV[6])
  end
end
return answer('granted', now, held[2], string.format('%d', lease_ms), held[3] or '0')
