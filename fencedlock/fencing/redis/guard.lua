-- The guard is put before a user's script, into its first line and without these comments.
--
-- KEYS[1] is the resource's fence, a hash with the fields token and lock. The user's keys follow.
-- ARGV[1] is the token and ARGV[2] its lock. ARGV[3] is the time in ms for which a fence lives at
-- least after its last use, or 0 for ever. The user's arguments follow.
--
-- If the token is refused, the guard returns the error FENCEDLOCKSTALE <token> or FENCEDLOCKOTHER
-- <lock in hex>, and changes nothing. Otherwise the script runs, as a function, and sees only its
-- own keys and arguments.
--
-- The fence's life is prolonged in big steps, because each change of the key breaks the WATCH of
-- another thread, even if the token does not rise.
-- Tokens are compared as decimal text, because Lua's numbers are not exact enough.
do
    local token, lock = unpack(redis.call('HMGET', KEYS[1], 'token', 'lock'));
    if lock and lock ~= ARGV[2] then return redis.error_reply('FENCEDLOCKOTHER ' .. string.gsub(lock, '.', function(byte) return string.format('%02x', string.byte(byte)) end)) end;
    if token and (#token > #ARGV[1] or (#token == #ARGV[1] and token > ARGV[1])) then return redis.error_reply('FENCEDLOCKSTALE ' .. token) end;
    if token ~= ARGV[1] then redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lock', ARGV[2]) end;
    local life_ms, left_ms = tonumber(ARGV[3]), redis.call('PTTL', KEYS[1]);
    if life_ms == 0 and left_ms >= 0 then redis.call('PERSIST', KEYS[1]) end;
    if life_ms > 0 and left_ms < life_ms then redis.call('PEXPIRE', KEYS[1], 2 * life_ms) end;
end;
local function theirs(list, first)
    local own = {};
    for i = first, #list do own[i - first + 1] = list[i] end;
    return own;
end;
local KEYS, ARGV = theirs(KEYS, 2), theirs(ARGV, 4);
return (function()
