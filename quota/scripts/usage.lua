-- ARGV: clock, nonce. Answers {now, {counter, period, count or 'used updated limit', ...}, {lease id, expires, record's
-- tokens, layers, ...}}, a counter as its dimension's code and its layer.
local closed = unopened()
if closed then return closed end
reap()
local counters, leases = {}, {}

local function tell(field, period, value)
  local n = #counters
  counters[n + 1], counters[n + 2], counters[n + 3] = field, text(period), value
end

local names = redis.call('HKEYS', BASE .. 'c')
prefetch(names, 1)
for _, name in ipairs(names) do
  local record = record_of(name)
  for j = 1, NUM do
    local slot, at = SLOTS[j], PERIOD_AT[KINDS[j]]
    if record[slot] == 0 then -- says nothing
    elseif KINDS[j] ~= 'b' then
      tell(CODES[j] .. name, at and record[at] or 0, text(record[slot]))
    elseif record[slot + 2] >= 0 then
      tell(CODES[j] .. name, 0, format('%d %d %d', record[slot], record[slot + 1], record[slot + 2]))
    end
  end
end
commit()
for kind, period in pairs({ d = today.d, m = today.m }) do
  for p = period - 1, period + 1 do
    local flat = redis.call('HGETALL', BASE .. kind .. text(p))
    for i = 1, #flat, 2 do tell(flat[i], p, flat[i + 1]) end
  end
end
local open = redis.call('ZRANGE', BASE .. 'o', 0, -1, 'WITHSCORES')
for i = 1, #open, 2 do
  local lease = cmsgpack.unpack(redis.call('HGET', BASE .. 'l', open[i]))
  for _, value in ipairs({ open[i], text(open[i + 1]), text(lease[TOKENS]), lease[LAYERS] }) do
    leases[#leases + 1] = value
  end
end
return { text(now), counters, leases }
