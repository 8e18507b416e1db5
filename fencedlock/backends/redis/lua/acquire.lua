-- Asks for the lock, takes a place in its queue, or keeps it. Any replay gets the same grant and the same place.
--
-- ARGV: 1 claim, 2 mode ('try', 'queue', or 'beat', which never takes a new place), 3 floor, 4 not_after_us, 5 holder,
--       6 fair ('1' or '0'), 7 lease_ms, 8 span_ms (a waiter is alive so long after its last beat),
--       9 inbox prefix, 10 counts_receivers ('1': PUBLISH tells how many got a message)
-- Answers: granted now_us token ttl_ms abandoned
--          waiting issued remaining_ms
--          busy | gone | late now_us
--@include grant
local claim, mode, floor, holder, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[7]

local now_us = server_time_us()
if now_us > tonumber(ARGV[4]) then
  return answer('late', text(now_us))
end

local function grant_now()
  local issued, abandoned = last_issued()
  local token = grant(claim, holder, lease_ms, now_us, floor, issued, abandoned)
  return answer('granted', text(now_us), token, lease_ms, abandoned)
end

local existing = call('EXISTS', lock, queue, withdrawn)
if mode ~= 'beat' and existing == 0 then
  return grant_now()
end

--@include queue
local fair, span_ms, inbox, counts_receivers = ARGV[6], ARGV[8], ARGV[9], ARGV[10]

local function granted()
  local held = call('HMGET', lock, 'token', 'abandoned')
  local ttl_ms = call('PTTL', lock)
  if ttl_ms < tonumber(lease_ms) then
    ttl_ms = lease_ms
    call('PEXPIRE', lock, ttl_ms)
  end
  return answer('granted', text(now_us), held[1], ttl_ms, held[2] or '0')
end

local owner, token = unpack(call('HMGET', lock, 'owner', 'token'))
if owner == claim then
  return granted()
end
local nobody_waits = existing == (owner and 1 or 0) -- and no claim was withdrawn
if not nobody_waits and call('ZSCORE', withdrawn, claim) then
  return answer('gone')
end

local ticket = not nobody_waits and call('ZSCORE', queue, claim)
if mode == 'beat' and not ticket then
  return answer('gone')
end
if not owner and fair == '0' then
  call('ZREM', queue, claim)
  call('HDEL', waiters, claim)
  return grant_now()
end
if ticket or mode == 'queue' then
  if ticket then
    call('HDEL', waiters, claim) -- a first write that is allowed at maxmemory: whoever waits already keeps its place there
  else
    local last = nobody_waits and 0 or tonumber(call('ZRANGE', queue, '-1', '-1', 'WITHSCORES')[2]) or 0
    call('ZADD', queue, text(math.max(last + 1, now_us)), claim)
  end
  call('HSET', waiters, claim, text(now_us + span_ms * 1000) .. ' ' .. span_ms .. ' ' .. floor .. ' ' .. holder)
  call('PEXPIRE', queue, QUEUE_TTL_MS)
  call('PEXPIRE', waiters, QUEUE_TTL_MS)
end
if not owner then
  local issued, abandoned = last_issued()
  local winner = hand_off(now_us, inbox, counts_receivers, nil, { issued = issued, abandoned = abandoned }, claim, lease_ms)
  if winner == claim then
    return granted()
  elseif not winner and mode == 'try' then
    return grant_now()
  end
end
if mode == 'try' then
  return answer('busy')
end
-- While the lock is held, its token is the last one issued.
return answer('waiting', token or call('HGET', fence, 'issued') or '0', math.max(0, call('PTTL', lock)))
