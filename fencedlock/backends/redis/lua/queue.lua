-- The queue and the hand-off. Included after grant.lua, where a script needs them.
--
-- A claim's id begins with its client's id and a slash; the client's inbox is the channel <inbox prefix><client id>.
local MOST_PLACES = 10000 -- looked at by one hand-off: loops are bounded

-- The TTL of a shared key only rises: set from its last writer alone, a short lease would delete a longer one's place.
local function keep_until(key, until_us, now_us)
  local ttl_ms = math.ceil((until_us - now_us) / 1000)
  if ttl_ms > call('PTTL', key) then
    call('PEXPIRE', key, ttl_ms)
  end
end

local function leave(claim)
  call('ZREM', queue, claim)
  call('HDEL', waiters, claim)
end

local function waiter(claim)
  local record = call('HGET', waiters, claim)
  local deadline_us, span_ms, floor, holder = string.match(record or '', '^(%d+) (%d+) (%d+) (.*)$')
  return tonumber(deadline_us), tonumber(span_ms), tonumber(floor), holder
end

-- How many clients heard a message to the client of this claim; false where that can't be told.
local function ring(inbox, counts_receivers, claim, message)
  local heard = redis.pcall('PUBLISH', inbox .. string.match(claim, '^[^/]*'), claim .. ' ' .. message)
  return counts_receivers == '1' and type(heard) == 'number' and heard
end

-- The next in line knows when the lease of the holder of before would have ended. If the new one's is shorter than its own
-- time between beats, it must look again, or it would learn too late that this holder died.
local function tell_next(inbox, counts_receivers, winner_span_ms)
  local next_claim = call('ZRANGE', queue, 0, 0)[1]
  if next_claim then
    local _, span_ms = waiter(next_claim)
    if span_ms and span_ms > winner_span_ms then
      ring(inbox, counts_receivers, next_claim, 'look')
    end
  end
end

-- Gives the free lock to the first waiter that is alive and can be reached; its claim's id, or nil if there is none.
-- Lapsed places are dropped. A grant lasts as long as the waiter has proved to be alive; its heartbeat extends it.
-- PUBLISH tells how many got the doorbell: 0, outside a cluster, means that the process is gone or cut off. Such a waiter
-- keeps its ticket until its deadline, and the next is served at once. The caller needs no doorbell: it reads the answer.
local function hand_off(now_us, inbox, counts_receivers, caller, caller_lease_ms)
  local issued, abandoned = last_issued()
  local silent = {}
  local rank = 0
  for _ = 1, MOST_PLACES do
    local claim = call('ZRANGE', queue, rank, rank)[1]
    if not claim then
      return nil
    end
    local deadline_us, span_ms, floor, holder = waiter(claim)
    local client = string.match(claim, '^[^/]*')
    if not deadline_us or deadline_us <= now_us then
      leave(claim)
    elseif claim == caller then
      leave(claim)
      grant(claim, holder, caller_lease_ms, now_us, floor, issued, abandoned)
      tell_next(inbox, counts_receivers, span_ms)
      return claim
    elseif silent[client] then
      rank = rank + 1
    else
      -- Granted before it is published: a doorbell must never tell of a grant that a missing permission prevented.
      local lease_ms = math.max(1, math.floor((deadline_us - now_us) / 1000))
      local token = grant(claim, holder, lease_ms, now_us, floor, issued, abandoned)
      if ring(inbox, counts_receivers, claim, token .. ' ' .. abandoned) == 0 then
        call('DEL', lock)
        issued = tonumber(token)
        silent[client] = true
        rank = rank + 1
      else
        leave(claim)
        tell_next(inbox, counts_receivers, span_ms)
        return claim
      end
    end
  end
  return nil
end

-- Refuses whatever packets of a claim may still come, until the last moment at which they may.
local function bury(claim, until_us, now_us)
  if until_us > now_us then
    call('ZREMRANGEBYSCORE', withdrawn, '-inf', text(now_us))
    call('ZADD', withdrawn, text(until_us), claim)
    keep_until(withdrawn, until_us, now_us)
  end
end
