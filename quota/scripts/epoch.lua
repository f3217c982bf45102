-- KEYS: where the epoch is kept. ARGV: clock, a new epoch, '1' if the caller remembers an older one: then Redis has
-- lost its memory. Answers '<epoch> <when it did, in ms, or 0> <now>', with a new epoch if there is none.
local t = redis.call('TIME')
local now = string.format('%d', tonumber(ARGV[1]) or t[1] * 1000 + math.floor(t[2] / 1000))
local value = redis.call('GET', KEYS[1])
if not value then
  value = ARGV[2] .. ' ' .. (ARGV[3] == '1' and now or '0')
  redis.call('SET', KEYS[1], value)
end
return value .. ' ' .. now
