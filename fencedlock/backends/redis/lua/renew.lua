-- Extends the lease of a hold and writes down its depth: a beat, a manual renewal, a nested acquire or a nested release.
--
-- ARGV: 1 claim, 2 token, 3 lease_ms, 4 not_after_us, 5 operation, 6 count, 7 exact ('1': set this lease, even a shorter one)
-- The count is written only with a higher operation number than the stored one, so that a late packet undoes nothing; a lease is
-- shortened only by the latest operation. PEXPIRE comes first: so all this works at maxmemory too.
-- Answers: renewed now_us ttl_ms | lost now_us | late now_us
--@include keys
--@include now
local claim, token, ttl_ms, not_after_us = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local operation, count, exact = tonumber(ARGV[5]), ARGV[6], ARGV[7]

if now_us > not_after_us then
  return { ok = 'late ' .. now }
end
local held = call('HMGET', lock, 'owner', 'token', 'operation')
if held[1] ~= claim or held[2] ~= token then
  return { ok = 'lost ' .. now }
end
local stored = tonumber(held[3]) or 0
if not (exact == '1' and operation >= stored) then
  ttl_ms = math.max(ttl_ms, call('PTTL', lock))
end
call('PEXPIRE', lock, ttl_ms)
call('PEXPIRE', fence, FENCE_TTL_MS)
if operation > stored then
  call('HSET', lock, 'count', count, 'operation', ARGV[5])
end
return { ok = 'renewed ' .. now .. ' ' .. ttl_ms }
