-- KEYS: where the epoch is kept. ARGV: clock, a new epoch, '1' if the caller remembers an older one: then Redis has
-- lost its memory. Answers '<epoch> <when it did, in ms, or 0> <now>', with a new epoch if there is none.
open_call(keys, arguments)
local value = call('GET', KEYS[1])
if not value then
  value = ARGV[2] .. ' ' .. (ARGV[3] == '1' and text(now) or '0')
  call('SET', KEYS[1], value)
end
return value .. ' ' .. text(now)
