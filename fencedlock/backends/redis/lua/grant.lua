-- What most scripts need: the making of a grant. Included after keys.lua and now.lua, where a script needs it.
--
-- Every script answers with one line, of words or of a number: a single line is what a client parses fastest.

local function answer(...)
  return { ok = table.concat({ ... }, ' ') }
end

-- The last token issued; '1' if its hold has not ended by a release, because its lease ran out or it was forced; and how many µs tokens are
-- ahead of the clock.
local function last_issued()
  local last = call('HMGET', fence, 'issued', 'ended', 'ahead')
  return tonumber(last[1]) or 0, (last[1] and last[1] ~= last[2]) and '1' or '0', tonumber(last[3]) or 0
end

-- Makes the claim the owner; the token. Tokens follow the server's clock, so that they rise even when the fence hash was
-- lost, and floor is the highest one that the claiming client has seen, in case the clock was set back. Those of a lock whose floor was raised
-- are ahead of the clock by a constant, and follow it too.
-- The fence is written first: where memory or a permission is missing, the error comes before there is an owner.
-- ended, where given, is the token of the hold that ends by the same release.
local function grant(claim, holder, lease_ms, floor, issued, abandoned, ahead_us, ended)
  local above = math.max(issued, tonumber(floor), now_us + ahead_us - 1)
  local token = above < now_us and now or string.format('%.0f', above + 1) -- Lua would print so large a number as 1.79e+15
  local added
  if ended then
    added = call('HSET', fence, 'issued', token, 'ended', ended)
  else
    added = call('HSET', fence, 'issued', token)
  end
  if added > 0 or math.floor(issued / PERIOD_US) ~= math.floor(now_us / PERIOD_US) then -- the fence is new, or it is the first grant of a period
    call('PEXPIRE', fence, FENCE_TTL_MS)
  end
  if abandoned == '0' then
    call('HSET', lock, 'owner', claim, 'token', token, 'holder', holder)
  else
    call('HSET', lock, 'owner', claim, 'token', token, 'holder', holder, 'abandoned', abandoned)
  end
  call('PEXPIRE', lock, lease_ms)
  return token
end

-- Notes that the hold with this token has ended by a release.
local function note_end(token)
  if call('HSET', fence, 'ended', token) == 1 then
    call('PEXPIRE', fence, FENCE_TTL_MS)
  end
end
