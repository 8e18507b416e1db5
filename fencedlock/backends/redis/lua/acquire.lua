-- Asks for the lock, takes a place in its queue, or keeps the place.
-- A replay of a packet gets the same grant and the same place.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 floor, 3 not_after_us, 4 holder, 5 lease_ms,
--       6 mode: 'try', 'queue', or 'beat', which never takes a new place
--       7 'fair span_ms channels': fair is 1 or 0; a waiter counts as alive for span_ms after its
--         last beat; channels are described in hand_off.lua
-- Answers: a number: the lock is granted for lease_ms, and the hold before was released.
--            The number is both the token and the server's time.
--          granted now_us token ttl_ms abandoned
--          waiting issued remaining_ms
--          busy | gone | late now_us
-- Raises an error, before anything is written, if Lua can't count the floor or a token exactly.
--@include keys
local claim, floor, holder, lease_ms, mode = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6]

--@include now
if now_us > tonumber(ARGV[3]) then
  return { ok = 'late ' .. now }
end

local existing = call('EXISTS', lock, queue, withdrawn)
-- The lock is free if nobody holds it, waits for it, or has withdrawn from it.
local free = mode ~= 'beat' and existing == 0
if free then
  -- The ordinary case, spelt out: the last hold was released, the last grant was in this period,
  -- and the next token is the time. The functions below do the same for every case, but making and
  -- calling them takes longer than their work.
  local last = call('HMGET', fence, 'issued', 'ended', 'ahead')
  local issued = tonumber(last[1])
  if issued and last[1] == last[2] and not last[3] and issued < now_us and tonumber(floor) < now_us
    and now_us < issued - issued % PERIOD_US + PERIOD_US then
    call('HSET', fence, 'issued', now)
    call('HSET', lock, 'owner', claim, 'token', now, 'holder', holder)
    call('PEXPIRE', lock, lease_ms)
    return now_us
  end
end

local function granted(token, abandoned)
  local ttl_ms = call('PTTL', lock)
  if ttl_ms < tonumber(lease_ms) then
    ttl_ms = lease_ms
    call('PEXPIRE', lock, ttl_ms)
  end
  return { ok = table.concat({ 'granted', now, token, ttl_ms, abandoned or '0' }, ' ') }
end

local held = call('HMGET', lock, 'owner', 'token', 'holder', 'lease')
local owner, token = held[1], held[2]
if owner == claim then
  return granted(token, call('HGET', lock, 'abandoned'))
end
local nobody_waits = existing == (owner and 1 or 0) -- and no claim was withdrawn
if not nobody_waits and call('ZSCORE', withdrawn, claim) then
  return { ok = 'gone' }
end
local ticket = not nobody_waits and call('ZSCORE', queue, claim)
if mode == 'beat' and not ticket then
  return { ok = 'gone' }
end

local fair = string.sub(ARGV[7], 1, 1) == '1'
if (ticket or mode == 'queue') and (owner or fair) and not free then
  if ticket then
    -- The first write is one that is allowed at maxmemory, so that waiters keep their places then.
    call('HDEL', waiters, claim)
  else
    local last = nobody_waits and 0 or tonumber(call('ZRANGE', queue, '-1', '-1', 'WITHSCORES')[2]) or 0
    call('ZADD', queue, last < now_us and now or string.format('%.0f', last + 1), claim)
  end
  call('HSET', waiters, claim, now .. ' ' .. string.match(ARGV[7], '%d+', 3) .. ' ' .. floor .. ' ' .. holder)
  call('PEXPIRE', queue, QUEUE_TTL_MS)
  call('PEXPIRE', waiters, QUEUE_TTL_MS)
end
if owner then
  -- If more is left than the whole lease, the server's clock was set back. A holder that has died
  -- must not keep the lock for as long as that step.
  local left_ms, whole_ms = call('PTTL', lock), tonumber(held[4] or string.match(held[3] or '', '^%d+'))
  if whole_ms and left_ms > whole_ms then
    left_ms = whole_ms
    call('PEXPIRE', lock, left_ms)
  end
  if mode == 'try' then
    return { ok = 'busy' }
  end
  -- While the lock is held, its token is the last one issued.
  return { ok = 'waiting ' .. token .. ' ' .. math.max(0, left_ms) }
end

--@include grant
--@include hand_off
local issued, abandoned, ahead_us = last_issued()
if math.max(issued, tonumber(floor)) >= MOST_TOKEN then
  return redis.error_reply('ERR fencedlock: a token of this lock, or the floor ' .. floor .. ', is too great to be counted exactly')
end

local function grant_now()
  local token = grant(claim, holder, lease_ms, floor, issued, abandoned, ahead_us)
  return answer('granted', now, token, lease_ms, abandoned)
end

if free then
  return grant_now()
end
if not fair then
  call('ZREM', queue, claim)
  call('HDEL', waiters, claim)
  return grant_now()
end
local winner = hand_off(string.match(ARGV[7], ' (.*)$', 3), nil, issued, abandoned, ahead_us, nil, claim, lease_ms)
if winner == claim then
  return granted(unpack(call('HMGET', lock, 'token', 'abandoned')))
end
if mode == 'try' then
  if winner then
    return answer('busy')
  end
  return grant_now()
end
return answer('waiting', call('HGET', fence, 'issued') or '0', math.max(0, call('PTTL', lock)))
