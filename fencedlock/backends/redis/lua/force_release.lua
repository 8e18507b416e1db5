-- Takes the lock from the hold with this token. The token is not noted as ended: the next holder learns that it was abandoned.
--
-- ARGV: 1 token, 2 channels (see queue.lua)
-- Naming the token makes it safe to repeat: a copy never takes the lock from whoever came next.
-- Answers: forced | lost
--@include keys
--@include now
--@include grant
--@include queue
if call('HGET', lock, 'token') ~= ARGV[1] then
  return answer('lost')
end
call('DEL', lock)
local issued, abandoned, ahead_us = last_issued()
hand_off(ARGV[2], nil, issued, abandoned, ahead_us)
return answer('forced')
