-- Forgets a claim that nobody waits for any more: its place, its grant, and its packets that are still under way.
--
-- ARGV: 1 claim, 2 bury_until_us (0: no packet of this claim is unanswered), 3 inbox prefix, 4 counts_receivers
-- ZREM and HDEL come first: so it works at maxmemory too.
-- Answers: withdrawn
--@include grant
--@include queue
local claim, bury_until_us, inbox, counts_receivers = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local now_us = server_time_us()
leave(claim)
bury(claim, bury_until_us, now_us)
local held = call('HMGET', lock, 'owner', 'token', 'abandoned')
if held[1] == claim then
  call('DEL', lock)
  -- Nobody worked under this grant. If the hold before it was abandoned, the next holder still has to learn so.
  if not held[3] then
    note_end(held[2])
  end
  hand_off(now_us, inbox, counts_receivers)
end
return answer('withdrawn')
