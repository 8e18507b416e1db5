-- Forgets a claim that nobody waits for any more.
-- It removes its place and its grant, and has its packets refused that are still under way.
--
-- KEYS: see keys.lua
-- ARGV: 1 claim, 2 bury_until_us (0: no packet of this claim is unanswered),
--       3 channels (see hand_off.lua)
-- Answers: withdrawn
-- ZREM and HDEL come first, so that the script also works at maxmemory.
--@include keys
--@include now
--@include grant
--@include hand_off
--@include bury
local claim, bury_until_us, channels = ARGV[1], tonumber(ARGV[2]), ARGV[3]

call('ZREM', queue, claim)
call('HDEL', waiters, claim)
bury(claim, bury_until_us)
local held = call('HMGET', lock, 'owner', 'token', 'abandoned')
if held[1] == claim then
  call('DEL', lock)
  -- Nobody worked under this grant. If the hold before it was abandoned, the next holder still has
  -- to learn of that.
  local abandoned = held[3] or '0'
  hand_off(channels, nil, tonumber(held[2]), abandoned, tonumber(call('HGET', fence, 'ahead')) or 0, abandoned == '0' and held[2] or nil)
end
return answer('withdrawn')
