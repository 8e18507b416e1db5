-- Ends a hold, but keeps the lock closed: until its key ends, nobody gets the lock.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 token, 3 keep_ms, 4 bury_until_us (0: no packet of this claim is unanswered),
--       5 channels (see hand_off.lua)
-- Answers: released | lost ended
-- The owner becomes nobody's claim, so that a late beat of the hold can't lengthen the time, and a
-- copy of this packet finds that the hold has ended. The lease becomes the time, because
-- acquire.lua shortens what is left of a lease to its whole length. PEXPIRE comes first, so that
-- the script also works at maxmemory.
--@include keys
--@include now
--@include grant
local claim, token, keep_ms, channels = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local held = call('HMGET', lock, 'owner', 'token')
local ours = held[1] == claim and held[2] == token
if ours then
  call('PEXPIRE', lock, keep_ms)
  call('HDEL', lock, 'wanted')
  call('HSET', lock, 'owner', 'kept:' .. claim, 'lease', keep_ms)
  note_end(token)
end
if ARGV[4] ~= '0' then
--@include bury
  bury(claim, tonumber(ARGV[4]))
end
if not ours then
  return answer('lost', call('HGET', fence, 'ended') or '0')
end
--@include hand_off
ring_first_to_look(channels)
return answer('released')
