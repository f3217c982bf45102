-- Answers what contradicts itself in one account's books, a line each. Writes nothing.
open_account(keys, arguments)
local wrong, held, states = {}, {}, { o = 0, f = 0 }

local function complain(what) wrong[#wrong + 1] = what end

local function all(suffix)
  local flat, pairs_of = call('HGETALL', BASE .. suffix), {}
  for i = 1, #flat, 2 do pairs_of[flat[i]] = flat[i + 1] end
  return pairs_of
end

-- Adds up what leases have in force on one counter.
local function hold(name, j, amount, at)
  local counter = KINDS[j] .. text(at[KINDS[j]] or 0) .. ' ' .. CODES[j] .. name
  local sum = held[counter] or { name = name, j = j, amount = 0, at = at }
  sum.amount, held[counter] = sum.amount + amount, sum
end

for id, packed in pairs(all('l')) do
  local lease = cmsgpack.unpack(packed)
  local at, charges = periods_at(lease[ADMITTED]), lease[CHARGES]
  local queue = queue_of(lease[STATE])
  states[queue] = states[queue] + 1
  if not score(queue, id) then complain(id .. ' is in state ' .. lease[STATE] .. ' but not in its queue') end
  if lease[STATE] ~= 'f' then
    for i = 1, #charges, WIDTH do
      for j = 1, NUM do hold(charges[i], j, max(0, charges[i + j]), at) end
    end
  end
end
for queue, count in pairs(states) do
  local listed = call('ZCARD', BASE .. queue)
  if listed ~= count then complain('queue ' .. queue .. ' lists ' .. listed .. ' leases of ' .. count) end
end
for id in pairs(all('u')) do
  if not get('l', id) then complain(id .. ' has a report but no lease') end
end

for name in pairs(all('c')) do
  local record = record_of(name)
  for j = 1, NUM do
    local slot = SLOTS[j]
    if KINDS[j] == 'g' then hold(name, j, 0, today) end
    if KINDS[j] == 'b' and record[slot + 2] >= 0 and record[slot] > record[slot + 2] * MINUTE then
      complain(CODES[j] .. name .. ' holds ' .. text(record[slot]) .. ' above ' .. text(record[slot + 2]))
    end
  end
end
for counter, sum in pairs(held) do
  local kind = KINDS[sum.j]
  if kind ~= 'b' and not sum.at.over[kind] then
    local count = used_of(record_of(sum.name), sum.name, sum.j, 0, sum.at)
    if count < sum.amount or kind == 'g' and count > sum.amount then
      complain(counter .. ' counts ' .. count .. ', its leases hold ' .. sum.amount)
    end
  end
end
return wrong
