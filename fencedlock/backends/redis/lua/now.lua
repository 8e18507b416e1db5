-- The server's time in µs, once for the whole script: as text, and as a number. Text need not be made of a number, which takes Lua long.
local time = call('TIME')
local now = time[1] .. (#time[2] == 6 and time[2] or string.format('%06d', time[2]))
local now_us = tonumber(now)
