-- The queue and the hand-off. Included after grant.lua, where a script needs them.
--
-- A claim's id begins with its client's id and a slash; the client's inbox is the channel <inbox prefix><client id>.
-- channels: 'knows_listeners inbox_prefix' in one string, with 1 if the server knows who listens, and 0 if it can't (in a cluster).
local MOST_PLACES = 10000 -- looked at by one hand-off: loops are bounded

-- What is known of a waiting claim: for how many µs more it counts as alive (its span at most, even if the clock was set back), its span, its floor
-- and its holder; nil if nothing is.
local function waiter(claim)
  local since_us, span_ms, floor, holder = string.match(call('HGET', waiters, claim) or '', '^(%d+) (%d+) (%d+) (.*)$')
  if since_us then
    return math.min(since_us - now_us, 0) + span_ms * 1000, tonumber(span_ms), floor, holder
  end
end

-- False if nobody listens to this client's inbox here. A message to it must not be sent then: it would travel to the replicas, where an inbox
-- that was left behind by a failover may hear of a grant that was given to somebody else.
local function listens(channels, client)
  local counts = string.sub(channels, 1, 1) == '1' and redis.pcall('PUBSUB', 'NUMSUB', string.sub(channels, 3) .. client)
  return not counts or counts[2] ~= 0
end

-- A missing permission costs latency only.
local function ring(channels, client, message)
  redis.pcall('PUBLISH', string.sub(channels, 3) .. client, message)
end

-- Gives the free lock to the first waiter that is alive and can be reached; its claim's id, or nil if there is none.
-- Lapsed places are dropped. A grant lasts as long as the waiter has proved to be alive; its heartbeat extends it.
-- Nobody listening means that the process is gone or cut off. Such a waiter keeps its ticket until its deadline, and the next is
-- served at once. The caller needs no doorbell: it reads the answer.
-- The lock's hash may be there still, if it has no field but those that each grant writes. It is gone if nobody gets the lock.
-- first: what ZPOPMIN gave, if it was asked already. issued: no token up to it is issued. abandoned, ahead_us: see last_issued.
-- ended: the token of the hold that ends by this script, if one does (see grant).
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
        -- Granted before it is published: a doorbell must never tell of a grant that a missing permission prevented.
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
  if passed_over then -- they go back, with their tickets
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
    -- The next in line knows when the lease of the holder of before would have ended. If the new one's is shorter than its own
    -- time between beats, it must look again, or it would learn too late that this holder died.
    local next_claim = call('ZRANGE', queue, '0', '0')[1]
    local _, span_ms = waiter(next_claim or '')
    if span_ms and span_ms > winner_span_ms then
      local owner, client = string.match(next_claim, '^(([^/]*)/[^/]*)') -- not the whole claim: who reads it could forge a grant
      ring(channels, client, owner .. ' look')
    end
  end
  return winner
end
