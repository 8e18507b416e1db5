-- Takes the lock from whoever holds it. The token is not noted as ended: the next holder learns that the hold was abandoned.
--
-- ARGV: 1 inbox prefix, 2 counts_receivers
-- Answers: forced token (0: nobody held it)
--@include grant
--@include queue
local token = call('HGET', lock, 'token')
if token then
  call('DEL', lock)
  local issued, abandoned = last_issued()
  hand_off(server_time_us(), ARGV[1], ARGV[2], nil, { issued = issued, abandoned = abandoned })
end
return answer('forced', token or '0')
