-- The server's time in µs for the whole script, as text (now) and as a number (now_us).
-- The text is not made from the number, because this takes Lua long.
local time = call('TIME')
local now = time[1] .. (#time[2] == 6 and time[2] or string.format('%06d', time[2]))
local now_us = tonumber(now)
