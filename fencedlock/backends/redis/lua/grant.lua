-- The functions that make a grant, which most scripts need.
-- A script includes this file after keys.lua and now.lua.
--
-- KEYS: see keys.lua
-- Except for inspect.lua, every script answers with one line, of words or of a number, because a
-- client parses a single line fastest.

local function answer(...)
  return { ok = table.concat({ ... }, ' ') }
end

-- Returns the last token issued, whether its hold was abandoned, and how many µs tokens are ahead
-- of the clock. Abandoned is '1' if the hold has not ended by a release, because its lease ran out
-- or it was forced, and '0' otherwise.
local function last_issued()
  local last = call('HMGET', fence, 'issued', 'ended', 'ahead')
  return tonumber(last[1]) or 0, (last[1] and last[1] ~= last[2]) and '1' or '0', tonumber(last[3]) or 0
end

-- Makes the claim the owner, and returns the token.
-- Tokens follow the server's clock, so that they rise even if the fence hash was lost. The floor is
-- the highest token that the claiming client has seen, in case the clock was set back. The tokens
-- of a lock whose floor was raised follow the clock, too, but are ahead of it by a constant.
-- The fence is written first. So if memory or a permission is missing, the error comes before there
-- is an owner.
-- ended is the token of the hold that ends by the same release, or nil.
local function grant(claim, holder, lease_ms, floor, issued, abandoned, ahead_us, ended)
  local above = math.max(issued, tonumber(floor), now_us + ahead_us - 1)
  -- The number is formatted, because Lua would print one of this size as 1.79e+15.
  local token = above < now_us and now or string.format('%.0f', above + 1)
  local added
  if ended then
    added = call('HSET', fence, 'issued', token, 'ended', ended)
  else
    added = call('HSET', fence, 'issued', token)
  end
  -- The fence is new, or this is the first grant of a period.
  if added > 0 or math.floor(issued / PERIOD_US) ~= math.floor(now_us / PERIOD_US) then
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

-- Notes that the hold with this token was released.
local function note_end(token)
  if call('HSET', fence, 'ended', token) == 1 then
    call('PEXPIRE', fence, FENCE_TTL_MS)
  end
end
