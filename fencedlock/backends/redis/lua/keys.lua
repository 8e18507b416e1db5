-- The keys of every script, all of one lock and in one slot. Each has a TTL.
--
-- 1 lock       hash: owner (claim id), token, holder ("lease_ms host/pid/thread"), and where they matter operation, count (if not 1), lease (in ms, if
--              it was changed since), abandoned, ahead; exists while it is held
-- 2 queue      sorted set: waiting claims by ticket (order of arrival)
-- 3 waiters    hash: claim -> "since_us span_ms floor holder": alive for span_ms since its last beat
-- 4 fence      hash: issued (last token), ended (last token released cleanly), ahead (of raise_floor: so many µs are tokens ahead of the clock)
-- 5 withdrawn  sorted set: claims given up, by the server time until which packets of theirs may still come
local lock, queue, waiters, fence, withdrawn = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local MOST_TOKEN = 9007199254740991 -- Lua counts exactly up to here
-- Both are filled in by scripts.py. The TTL is set on the first grant of each period, which is an eighth of it: so seven eighths are left
-- after the last use.
local FENCE_TTL_MS = '@fence_ttl_ms@'
local PERIOD_US = @period_us@

-- The queue lives as long as the longest span of any waiter, counted from the last write. Set from its last writer's own span,
-- a short lease would delete a longer one's place.
local QUEUE_TTL_MS = '10000'
local MOST_SPAN_MS = 10000

local call = redis.call
