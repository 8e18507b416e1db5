-- Goes before a user's script, in the same first line, without these comments.
-- KEYS[1]: the resource's fence, a hash of token and lock; the user's keys follow.
-- ARGV[1]: the token; [2]: its lock; [3]: the fence's life in ms after its token rose, 0 for ever; the user's arguments follow.
-- Returns the error FENCESTALE or FENCEOTHERLOCK, and changes nothing; otherwise the script runs, and sees its own keys and arguments only.
-- Tokens are compared as decimal text: Lua's numbers are not exact enough.
do
    local token, lock = unpack(redis.call('HMGET', KEYS[1], 'token', 'lock'));
    if lock and lock ~= ARGV[2] then return redis.error_reply('FENCEOTHERLOCK the fence is bound to another lock') end;
    if token and (#token > #ARGV[1] or (#token == #ARGV[1] and token > ARGV[1])) then return redis.error_reply('FENCESTALE ' .. token) end;
    if token ~= ARGV[1] then redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lock', ARGV[2]) end;
    local life_ms, left_ms = tonumber(ARGV[3]), redis.call('PTTL', KEYS[1]);
    if life_ms == 0 and left_ms >= 0 then redis.call('PERSIST', KEYS[1]) end;
    if life_ms > 0 and left_ms < life_ms / 2 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end;
end;
local KEYS, ARGV = (function(keys, arguments)
    local theirs, given = {}, {};
    for i = 2, #keys do theirs[i - 1] = keys[i] end;
    for i = 4, #arguments do given[i - 3] = arguments[i] end;
    return theirs, given;
end)(KEYS, ARGV);
