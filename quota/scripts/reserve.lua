-- ARGV: clock, nonce, lease id, tokens, layers (layers_of), '1' if they can't be admitted.
-- Answers {'unopened', nonce}, {'impossible'},
-- {'refused', now, admitted, what is used now, what was then, what it costs},
-- {'repeated' or 'admitted' or (an expired one) 'readmitted', now, expires, what is used now, tokens, layers, epoch,
-- when it was admitted, state}, of the limited counters in order. A shadow limit may be told fuller than full.
open_account(keys, arguments)
local id, tokens, impossible = ARGV[3], int(ARGV[4]), ARGV[6] == '1'
local list = layers_of(ARGV[5])

local function joined(numbers) -- all of them have passed int(), or are sums of what has
  return format(string.rep('%d ', #numbers), unpack(numbers))
end

local function used_now()
  local used = {}
  for i = 1, #list, STRIDE do
    for j = 1, NUM do
      local limit = limit_of(list[i + j])
      if limit >= 0 then used[#used + 1] = used_of(record_of(list[i]), list[i], j, limit, today) end
    end
  end
  return joined(used)
end

local closed = unopened()
if closed then return closed end
reap()
local lease = lease_of(id)
prefetch(list, STRIDE)
if lease and lease[STATE] ~= 'x' then
  local expires = lease[STATE] == 'o' and score('o', id) or lease[EXPIRES]
  return commit({ 'repeated', text(now), text(expires), used_now(), text(lease[TOKENS]), lease[LAYERS], epoch,
    text(lease[ADMITTED]), lease[STATE] })
end
if impossible then return commit({ 'impossible' }) end

local answer = lease and 'readmitted' or 'admitted'
lease = lease or { '', '', 0, now, 0, {} }
local charges, at, places = lease[CHARGES], today, {} -- places: where the charges of an expired lease stand
if lease[STATE] == 'x' then
  at = periods_at(lease[ADMITTED])
  for i = 1, #charges, WIDTH do places[charges[i]] = i end
end

local costs, stood, num, fits, seen = {}, {}, 0, true, {} -- of all that is counted, in order
local before, limited_costs, after, n = {}, {}, {}, 0 -- of what is limited
for i = 1, #list, STRIDE do
  local name = list[i]
  local record, place = record_of(name), places[name]
  if seen[name] then error('the layer ' .. name .. ' is given twice') end -- else told by `impossible`
  seen[name] = true
  for j = 1, NUM do
    local coded, cost, unit = list[i + j], IS_TOKENS[j] and tokens or 1, KINDS[j] == 'b' and MINUTE or 1
    if is_counted(coded, j) then
      if place then cost = max(0, cost - max(0, charges[place + j])) end
      local limit = limit_of(coded)
      local used = used_of(record, name, j, limit, at)
      num = num + 1
      costs[num], stood[num] = cost, used
      if limit >= 0 then
        n = n + 1
        before[n], limited_costs[n], after[n] = used, cost, used + min(cost, limit + 1) * unit
        if cost > 0 and coded >= 0 and used > (limit - cost) * unit then fits = false end
      end
    end
  end
end

if not fits then
  if AUDIT then audit('refused', id, tokens, asked_in(list), at) end
  return commit({ 'refused', text(now), text(lease[ADMITTED]), used_now(), joined(before), joined(limited_costs) })
end

num = 0
for i = 1, #list, STRIDE do
  local name = list[i]
  local record, place = record_of(name), places[name] or open_charge(charges, name)
  for j = 1, NUM do
    if is_counted(list[i + j], j) then
      num = num + 1
      local cost, used, limit, held = costs[num], stood[num], limit_of(list[i + j]), charges[place + j]
      if cost > 0 or held < 0 then
        if LEVELS[j] then
          charges[place + LEVELS[j]] = set_bucket(record, SLOTS[j], used + cost * MINUTE, limit)
          charges[place + LEVELS[j] + 1] = now
        elseif cost > 0 then
          set_count(record, name, j, used + cost, at)
        end
        charges[place + j], charges[place + NUM + j] = max(0, held) + cost, limit
      end
    end
  end
  put('c', name, record)
end
lease[LAYERS], lease[TOKENS] = ARGV[5], tokens
keep(id, lease, 'o', now + LEASE)
if AUDIT then audit('reserved', id, tokens, asked_in(list), at) end
sweep(#list / STRIDE)
local used = at == today and joined(after) or used_now()
return commit({ answer, text(now), text(now + LEASE), used, text(tokens), ARGV[5], epoch, text(lease[ADMITTED]), 'o' })
