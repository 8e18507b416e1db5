-- A function for the scripts that include this file: bury(claim, until_us).
-- KEYS: see keys.lua. It needs now.lua, and returns nothing.
--
-- Refuses packets of a claim that may still arrive, until the time after which none can arrive.
local function bury(claim, until_us)
  if until_us > now_us then
    call('ZREMRANGEBYSCORE', withdrawn, '-inf', now)
    call('ZADD', withdrawn, string.format('%.0f', until_us), claim)
    local ttl_ms = math.ceil((until_us - now_us) / 1000)
    if ttl_ms > call('PTTL', withdrawn) then
      call('PEXPIRE', withdrawn, ttl_ms)
    end
  end
end
