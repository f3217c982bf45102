-- Answers what contradicts itself in one account's books, a line each. Writes nothing.
local wrong, held, states = {}, {}, { o = 0, f = 0 }

local function complain(what) wrong[#wrong + 1] = what end

local function all(suffix)
  local flat, pairs_of = redis.call('HGETALL', BASE .. suffix), {}
  for i = 1, #flat, 2 do pairs_of[flat[i]] = flat[i + 1] end
  return pairs_of
end

for id, packed in pairs(all('l')) do
  local lease = cmsgpack.unpack(packed)
  local homes, charges = homes_at(lease[ADMITTED]), lease[CHARGES]
  local queue = queue_of(lease[STATE])
  states[queue] = states[queue] + 1
  if not score(queue, id) then complain(id .. ' is in state ' .. lease[STATE] .. ' but not in its queue') end
  if lease[STATE] ~= 'f' then
    for i = 1, #charges, WIDTH do
      local home = homes[kind_of(charges[i])]
      held[home] = held[home] or {}
      held[home][charges[i]] = (held[home][charges[i]] or 0) + charges[i + 1]
    end
  end
end
for queue, count in pairs(states) do
  local listed = redis.call('ZCARD', BASE .. queue)
  if listed ~= count then complain('queue ' .. queue .. ' lists ' .. listed .. ' leases of ' .. count) end
end
for id in pairs(all('u')) do
  if not get('l', id) then complain(id .. ' has a report but no lease') end
end

for field, count in pairs(all('g')) do
  local of_leases = (held.g or {})[field] or 0
  if int(count) ~= of_leases then complain(field .. ' counts ' .. count .. ', its leases hold ' .. of_leases) end
end
for home, fields in pairs(held) do
  if home ~= 'b' then
    local counted = all(home)
    for field, amount in pairs(fields) do
      local count = int(counted[field] or 0)
      local is_short = count < amount and (home == 'g' or counted[field])
      if is_short then complain(home .. ' ' .. field .. ' counts ' .. count .. ', its leases hold ' .. amount) end
    end
  end
end
for field in pairs(all('b')) do
  local b = get('b', field)
  if b[1] > b[3] * MINUTE then complain(field .. ' holds ' .. text(b[1]) .. ' above ' .. text(b[3])) end
end
return wrong
