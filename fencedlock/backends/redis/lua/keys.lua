-- The keys of every script. All belong to one lock and are in one slot. Each has a TTL.
--
-- KEYS:
-- 1 lock       hash, which exists while the lock is held, or kept closed after a hold (see
--              keep.lua): owner (claim id; 'kept:<claim id>'; 'detached:<digest>:<claim id>'), token,
--              holder ("lease_ms host/pid/thread"), and if they matter: operation,
--              count (if not 1), lease (in ms, if it was changed since), abandoned, ahead,
--              wanted (the reason of the last request to release it, percent-encoded)
-- 2 queue      sorted set: waiting claims by ticket (order of arrival)
-- 3 waiters    hash: claim -> "since_us span_ms floor holder"; a waiter counts as alive for span_ms
--              after since_us, the time of its last beat
-- 4 fence      hash: issued (last token), ended (token of the last hold that was released),
--              ahead (set by raise_floor: how many µs tokens are ahead of the clock)
-- 5 withdrawn  sorted set: claims that were given up, by the server's time until which their
--              packets may still arrive
local lock, queue, waiters, fence, withdrawn = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local MOST_TOKEN = 9007199254740991 -- Lua counts exactly up to here
-- scripts.py fills in both values. The TTL is set on the first grant of each period, which is an
-- eighth of the TTL. So at least seven eighths are left after the last use.
local FENCE_TTL_MS = '@fence_ttl_ms@'
local PERIOD_US = @period_us@

-- The queue lives for the longest possible span of a waiter, counted from the last write. If its
-- TTL were the span of the last writer, a short lease would delete the place of a longer one.
local QUEUE_TTL_MS = '10000'
local MOST_SPAN_MS = 10000

local call = redis.call
