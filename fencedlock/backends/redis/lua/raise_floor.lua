-- Lets no token up to this one be issued any more.
--
-- ARGV: 1 token
-- The last token issued stays what it is: a gap must not be taken for a hold that was abandoned, nor for one that was released. What is kept is
-- how far the floor is ahead of the clock: tokens go on following the clock, so that even one that was lost with its server is not repeated.
-- Answers: raised
--@include keys
--@include now
--@include grant
local _, _, ahead_us = last_issued()
local needed_us = tonumber(ARGV[1]) + 1 - now_us
if needed_us > ahead_us then
  local ahead = string.format('%.0f', needed_us)
  call('HSET', fence, 'ahead', ahead)
  call('PEXPIRE', fence, FENCE_TTL_MS)
  if call('EXISTS', lock) == 1 then
    call('HSET', lock, 'ahead', ahead) -- whoever ends this hold finds that there is one
  end
end
return answer('raised')
