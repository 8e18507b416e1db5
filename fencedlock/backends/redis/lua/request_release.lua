-- Asks whoever holds the lock to release it. The holder learns of that by its next beat.
--
-- KEYS: see keys.lua
-- ARGV: 1 reason, percent-encoded; 2 channels (see hand_off.lua)
-- Answers: asked | free
--@include keys
--@include now
--@include grant
--@include hand_off
local owner = call('HGET', lock, 'owner')
if not owner or string.sub(owner, 1, 5) == 'kept:' then
  return answer('free')
end
call('HSET', lock, 'wanted', ARGV[1])
local client = string.match(owner, '^([^/:]*)/')
if client and listens(ARGV[2], client) then
  ring_to_look(ARGV[2], owner)
end
return answer('asked')
