-- Lets no token up to this one be issued any more.
--
-- ARGV: 1 token
-- The last token issued stays what it is: a gap must not be taken for a hold that was abandoned, nor for one that was released.
-- Answers: raised
--@include keys
--@include now
--@include grant
local floor = ARGV[1]
if tonumber(floor) > last_issued() then
  call('HSET', fence, 'floor', floor)
  call('PEXPIRE', fence, FENCE_TTL_MS)
  if call('EXISTS', lock) == 1 then
    call('HSET', lock, 'floor', floor) -- where whoever ends this hold finds it
  end
end
return answer('raised')
