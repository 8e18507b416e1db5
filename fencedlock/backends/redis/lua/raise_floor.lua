-- Raises the floor, so that no token up to this one is issued any more.
--
-- KEYS: see keys.lua
-- ARGV: 1 token
-- Answers: raised
-- The last token issued does not change, because a gap must be taken neither for a hold that was
-- abandoned nor for one that was released. What is stored is how far the floor is ahead of the
-- clock. So tokens still follow the clock, and even one that was lost with its server is not
-- repeated.
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
    call('HSET', lock, 'ahead', ahead) -- so that the end of this hold takes it into account
  end
end
return answer('raised')
