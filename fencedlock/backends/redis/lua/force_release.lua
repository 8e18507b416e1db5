-- Takes the lock from the hold with this token.
-- The token is not noted as ended, so the next holder learns that the hold was abandoned.
--
-- KEYS: see keys.lua
-- ARGV: 1 token, 2 channels (see hand_off.lua)
-- Answers: forced | lost
-- The token makes it safe to repeat the call: a copy never takes the lock from the next holder.
--@include keys
--@include now
--@include grant
--@include hand_off
if call('HGET', lock, 'token') ~= ARGV[1] then
  return answer('lost')
end
call('DEL', lock)
local issued, abandoned, ahead_us = last_issued()
hand_off(ARGV[2], nil, issued, abandoned, ahead_us)
return answer('forced')
