-- Goes before a user's script, in the same first line, without these comments.
-- KEYS[1]: the resource's fence, a hash of token and lock; the user's keys follow.
-- ARGV[1]: the token; [2]: its lock; [3]: the ms that a fence lives at least after its last use, 0 for ever; the user's arguments follow.
-- Returns the error FENCEDLOCKSTALE <token> or FENCEDLOCKOTHER <lock in hex>, and changes nothing; otherwise the script runs, as a function, and sees
-- its own keys and arguments only. The fence's life is prolonged in big steps: a change that is no rise would break the WATCH of another thread.
-- Tokens are compared as decimal text: Lua's numbers are not exact enough.
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
