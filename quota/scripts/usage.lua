-- ARGV: clock, nonce. Answers {now, {home, {field, value, ...}, ...}, {lease id, expires, record's tokens, layers, ...}}.
local closed = unopened()
if closed then return closed end
reap()
commit()
local today, homes, leases = homes_at(now), { 'b', 'g' }, {}
for offset = -1, 1 do
  homes[#homes + 1] = 'd' .. text(today.day + offset)
  homes[#homes + 1] = 'm' .. text(today.month + offset)
end
local counters = {}
for _, home in ipairs(homes) do
  counters[#counters + 1] = home
  counters[#counters + 1] = redis.call('HGETALL', BASE .. home)
end
local open = redis.call('ZRANGE', BASE .. 'o', 0, -1, 'WITHSCORES')
for i = 1, #open, 2 do
  local lease = cmsgpack.unpack(redis.call('HGET', BASE .. 'l', open[i]))
  for _, value in ipairs({ open[i], text(open[i + 1]), text(lease[TOKENS]), lease[LAYERS] }) do
    leases[#leases + 1] = value
  end
end
return { text(now), counters, leases }
