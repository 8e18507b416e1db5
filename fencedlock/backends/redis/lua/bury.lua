-- Refuses whatever packets of a claim may still come, until the last moment at which they may.
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
