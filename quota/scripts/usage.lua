-- ARGV: clock, nonce. Answers {now, {layer, packed record, ...}, {home, {field, count, ...}, ...}, {lease id, expires,
-- record's tokens, layers, ...}}.
open_account(keys, arguments)
local closed = unopened()
if closed then return closed end
reap()
commit()
local homes, leases = {}, {}
for kind, period in pairs({ d = today.d, m = today.m }) do
  for p = period - 1, period + 1 do
    homes[#homes + 1] = kind .. text(p)
    homes[#homes + 1] = call('HGETALL', BASE .. kind .. text(p))
  end
end
local open = call('ZRANGE', BASE .. 'o', 0, -1, 'WITHSCORES')
for i = 1, #open, 2 do
  local lease = cmsgpack.unpack(call('HGET', BASE .. 'l', open[i]))
  for _, value in ipairs({ open[i], text(open[i + 1]), text(lease[TOKENS]), lease[LAYERS] }) do
    leases[#leases + 1] = value
  end
end
return { text(now), call('HGETALL', BASE .. 'c'), homes, leases }
