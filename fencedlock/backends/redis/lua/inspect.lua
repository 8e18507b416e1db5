-- Reports the state of one lock. It writes nothing.
--
-- KEYS: see keys.lua
-- ARGV: none
-- Returns: {owner, holder, token, count, remaining_ms, issued, ahead_us, wanted,
--           {claim, remaining_ms, holder, claim, ...}}
-- A text that is not there is ''. The inner list has three entries for each living waiter.
--@include keys
--@include now
--@include grant
--@include hand_off
local held = call('HMGET', lock, 'owner', 'holder', 'token', 'count')
local line = {}
for _, claim in ipairs(call('ZRANGE', queue, 0, MOST_PLACES)) do
  local left_us, _, _, holder = waiter(claim)
  if left_us and left_us > 0 then
    table.insert(line, claim)
    table.insert(line, math.ceil(left_us / 1000))
    table.insert(line, holder)
  end
end
return {
  held[1] or '', held[2] or '', held[3] or '', held[4] or (held[1] and '1') or '0', math.max(0, call('PTTL', lock)),
  call('HGET', fence, 'issued') or '', call('HGET', fence, 'ahead') or '0',
  call('HGET', lock, 'wanted') or '', line,
}
