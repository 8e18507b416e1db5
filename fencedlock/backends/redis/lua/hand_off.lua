-- The functions for the queue and the hand-off. A script includes this file after grant.lua.
--
-- KEYS: see keys.lua
-- A claim's id begins with its client's id and a slash. The client's inbox is the channel
-- <inbox prefix><client id>.
-- channels: 'knows_listeners inbox_prefix' in one string. knows_listeners is 1 if the server knows
-- who listens, and 0 if it can't know (in a cluster).
local MOST_PLACES = 10000 -- one hand-off looks at no more places, so that loops are bounded
local MOST_LOOKED_AT = 100 -- places, where one waiter is looked for that can be reached

-- Returns for how many µs more a waiting claim counts as alive (at most its span, even if the clock
-- was set back), its span, its floor and its holder, or nil if nothing is known of it.
local function waiter(claim)
  local since_us, span_ms, floor, holder = string.match(call('HGET', waiters, claim) or '', '^(%d+) (%d+) (%d+) (.*)$')
  if since_us then
    return math.min(since_us - now_us, 0) + span_ms * 1000, tonumber(span_ms), floor, holder
  end
end

-- Returns false if nobody listens to this client's inbox here. Then no message may be sent to it,
-- because it would travel to the replicas, where an inbox that a failover left behind may hear of a
-- grant that was given to somebody else.
local function listens(channels, client)
  local counts = string.sub(channels, 1, 1) == '1' and redis.pcall('PUBSUB', 'NUMSUB', string.sub(channels, 3) .. client)
  return not counts or counts[2] ~= 0
end

-- Sends a message to a client's inbox. A missing permission costs only latency.
local function ring(channels, client, message)
  redis.pcall('PUBLISH', string.sub(channels, 3) .. client, message)
end

-- Has a waiter ask the server again.
-- The message does not contain the whole claim, because its readers could forge a grant.
local function ring_to_look(channels, claim)
  local owner, client = string.match(claim, '^(([^/]*)/[^/]*)')
  ring(channels, client, owner .. ' look')
end

-- Has the first waiter that can be reached ask the server again, because the lock opens sooner than
-- it knows. Others learn that by their beats.
local function ring_first_to_look(channels)
  for _, next_claim in ipairs(call('ZRANGE', queue, 0, MOST_LOOKED_AT - 1)) do
    local left_us = waiter(next_claim)
    if left_us and left_us > 0 and listens(channels, string.match(next_claim, '^[^/]*')) then
      ring_to_look(channels, next_claim)
      break
    end
  end
end

-- Grants the free lock to the first waiter that is alive and can be reached. Returns the id of its
-- claim, or nil if there is none.
-- Places of waiters that are not alive any more are dropped. A grant lasts for as long as the
-- waiter still counts as alive, and its heartbeat extends it.
-- If nobody listens to a waiter's inbox, its process is gone or cut off. This waiter keeps its
-- ticket until its deadline, and the next waiter is served at once. The caller needs no doorbell,
-- because it reads the answer.
-- The lock's hash may still exist, if it has only the fields that each grant writes. It is deleted
-- if nobody gets the lock.
-- first: the result of ZPOPMIN, if the script has called it already.
-- issued: no token up to this one is issued.
-- abandoned, ahead_us: see last_issued.
-- ended: the token of the hold that ends by this script, or nil (see grant).
-- caller, caller_lease_ms: the claim that asks for the lock by this script, and its lease, or nil.
local function hand_off(channels, first, issued, abandoned, ahead_us, ended, caller, caller_lease_ms)
  local winner, winner_span_ms, silent, passed_over
  for _ = 1, MOST_PLACES do
    local claim, ticket = unpack(first or call('ZPOPMIN', queue))
    first = nil
    if not claim then
      break
    end
    local left_us, span_ms, floor, holder = waiter(claim)
    local client = string.match(claim, '^[^/]*')
    if not left_us or left_us <= 0 then
      call('HDEL', waiters, claim)
    elseif claim == caller then
      winner, winner_span_ms = claim, span_ms
      grant(claim, holder, caller_lease_ms, floor, issued, abandoned, ahead_us, ended)
      break
    elseif not (silent and silent[client]) then
      if listens(channels, client) then
        -- The grant comes before the message, because a doorbell must never tell of a grant that a
        -- missing permission prevented.
        local token = grant(claim, holder, string.format('%d', math.ceil(left_us / 1000)), floor, issued, abandoned, ahead_us, ended)
        ring(channels, client, claim .. ' ' .. token .. ' ' .. abandoned)
        winner, winner_span_ms = claim, span_ms
        break
      end
      silent = silent or {}
      silent[client] = true
    end
    if left_us and left_us > 0 then
      passed_over = passed_over or {}
      passed_over[#passed_over + 1] = ticket
      passed_over[#passed_over + 1] = claim
    end
  end
  if passed_over then -- these waiters go back with their tickets
    for at = 1, #passed_over, 1000 do
      call('ZADD', queue, unpack(passed_over, at, math.min(at + 999, #passed_over)))
    end
    call('PEXPIRE', queue, QUEUE_TTL_MS)
  end
  if not winner then
    call('DEL', lock)
    if ended then
      note_end(ended)
    end
    return nil
  end
  call('HDEL', waiters, winner)
  if winner_span_ms < MOST_SPAN_MS then
    -- The next waiter only knows when the lease of the holder before would have ended. If the new
    -- holder's lease is shorter than that waiter's time between beats, the waiter must look again.
    -- Otherwise it would learn too late that the new holder has died.
    local next_claim = call('ZRANGE', queue, '0', '0')[1]
    local _, span_ms = waiter(next_claim or '')
    if span_ms and span_ms > winner_span_ms then
      ring_to_look(channels, next_claim)
    end
  end
  return winner
end
