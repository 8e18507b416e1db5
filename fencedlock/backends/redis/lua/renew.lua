-- Extends the lease of a hold and stores its depth.
-- It serves a beat, a manual renewal, a nested acquire and a nested release.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 token, 3 lease_ms, 4 not_after_us, 5 operation, 6 count
-- Answers: renewed now_us ttl_ms [wanted] | lost now_us | late now_us
-- Each change of the depth or of the lease's length has a higher operation number. A packet of the
-- latest operation sets the lease that it asks for, even a shorter one. An older packet, which
-- comes late, shortens nothing and stores nothing. The lease is set, and not only lengthened,
-- because after the clock was set back, what is left of it would be too long. PEXPIRE comes first,
-- so that the script also works at maxmemory.
--@include keys
--@include now
local claim, token, ttl_ms, not_after_us = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local operation, count = tonumber(ARGV[5]), ARGV[6]

if now_us > not_after_us then
  return { ok = 'late ' .. now }
end
local held = call('HMGET', lock, 'owner', 'token', 'operation', 'wanted')
if held[1] ~= claim or held[2] ~= token then
  return { ok = 'lost ' .. now }
end
local stored = tonumber(held[3]) or 0
if operation < stored then
  ttl_ms = math.max(ttl_ms, call('PTTL', lock))
end
call('PEXPIRE', lock, ttl_ms)
call('PEXPIRE', fence, FENCE_TTL_MS)
if operation > stored then
  call('HSET', lock, 'count', count, 'operation', ARGV[5], 'lease', ARGV[3])
end
return { ok = 'renewed ' .. now .. ' ' .. ttl_ms .. (held[4] and ' ' .. held[4] or '') }
