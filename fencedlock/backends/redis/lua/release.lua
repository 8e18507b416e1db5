-- Ends a hold and hands the lock to the first waiter that can be reached, in one step.
--
-- ARGV: 1 claim, 2 token, 3 bury_until_us (0: no packet of this claim is unanswered), 4 doors (see queue.lua)
-- Both claim and token must match. ZPOPMIN comes first: so it works at maxmemory too.
-- Answers: released | lost ended
--@include keys
local claim, token = ARGV[1], ARGV[2]
local held = call('HMGET', lock, 'owner', 'token')
local ours = held[1] == claim and held[2] == token
local first = ours and call('ZPOPMIN', queue)
if ours and not first[1] and ARGV[3] == '0' then -- nobody waits: the ordinary case, without functions
  call('DEL', lock)
  if call('HSET', fence, 'ended', token) == 1 then
    call('PEXPIRE', fence, FENCE_TTL_MS)
  end
  return { ok = 'released' }
end

--@include grant
local now_us, bury_until_us = server_time_us(), tonumber(ARGV[3])
if bury_until_us > 0 then
--@include bury
  bury(claim, bury_until_us, now_us)
end
if not ours then
  return answer('lost', call('HGET', fence, 'ended') or '0')
end
--@include queue
local issued = tonumber(token)
if call('HLEN', lock) > 3 then -- fields that the next grant would not write over
  issued = math.max(issued, tonumber(call('HGET', lock, 'floor')) or 0)
  call('DEL', lock)
end
hand_off(now_us, ARGV[4], first, issued, '0', token)
return answer('released')
