-- Ends a hold and hands the lock to the first waiter that can be reached, in one step.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 token, 3 bury_until_us (0: no packet of this claim is unanswered),
--       4 channels (see hand_off.lua)
-- Answers: released | lost ended
-- Both claim and token must match. ZPOPMIN comes first, so that the script also works at maxmemory.
--@include keys
local claim, token, channels = ARGV[1], ARGV[2], ARGV[4]
local held = call('HMGET', lock, 'owner', 'token')
local ours = held[1] == claim and held[2] == token
local first = ours and call('ZPOPMIN', queue)
-- The ordinary case, without functions: nobody waits.
if ours and not first[1] and ARGV[3] == '0' then
  call('DEL', lock)
  if call('HSET', fence, 'ended', token) == 1 then
    call('PEXPIRE', fence, FENCE_TTL_MS)
  end
  return { ok = 'released' }
end

--@include now
local issued = tonumber(token)
if ours and ARGV[3] == '0' and call('HLEN', lock) == 3 then
  -- The ordinary hand-over, spelt out as in acquire.lua: the successor has the longest span and
  -- listens, and its token is the time.
  local successor = first[1]
  local since_us, span_ms, floor, holder = string.match(call('HGET', waiters, successor) or '', '^(%d+) (%d+) (%d+) (.*)$')
  local left_us = since_us and since_us - now_us + span_ms * 1000 or 0
  local inbox = string.sub(channels, 3) .. string.match(successor, '^[^/]*')
  local counts = string.sub(channels, 1, 1) == '1' and redis.pcall('PUBSUB', 'NUMSUB', inbox)
  if (not counts or counts[2] ~= 0) and left_us > 0 and left_us <= MOST_SPAN_MS * 1000 and tonumber(span_ms) == MOST_SPAN_MS and tonumber(floor) < now_us
    and issued < now_us and now_us < issued - issued % PERIOD_US + PERIOD_US then
    if call('HSET', fence, 'issued', now, 'ended', token) > 0 then
      call('PEXPIRE', fence, FENCE_TTL_MS)
    end
    call('HSET', lock, 'owner', successor, 'token', now, 'holder', holder)
    call('PEXPIRE', lock, string.format('%d', math.ceil(left_us / 1000)))
    redis.pcall('PUBLISH', inbox, successor .. ' ' .. now .. ' 0')
    call('HDEL', waiters, successor)
    return { ok = 'released' }
  end
end

--@include grant
if ARGV[3] ~= '0' then
--@include bury
  bury(claim, tonumber(ARGV[3]))
end
if not ours then
  return answer('lost', call('HGET', fence, 'ended') or '0')
end
--@include hand_off
local ahead_us, more_fields = 0, call('HLEN', lock) > 3
if more_fields or issued >= now_us then -- the floor may have been raised
  ahead_us = tonumber(call('HGET', fence, 'ahead')) or 0
end
if more_fields then -- the next grant would not overwrite these
  call('DEL', lock)
end
hand_off(channels, first, issued, '0', ahead_us, token)
return answer('released')
