-- Lets no token up to this one be issued any more.
--
-- ARGV: 1 token
-- A lock whose last hold ended cleanly stays one: its next holder does not take the gap for an abandoned hold.
-- Answers: raised
--@include grant
local floor = ARGV[1]
local issued, abandoned = last_issued()
if tonumber(floor) > issued then
  if abandoned == '0' and call('EXISTS', lock) == 0 then
    call('HSET', fence, 'issued', floor, 'ended', floor)
  else
    call('HSET', fence, 'issued', floor)
  end
  call('PEXPIRE', fence, FENCE_TTL_MS)
end
return answer('raised')
