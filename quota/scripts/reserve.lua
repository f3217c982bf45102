-- ARGV: clock, nonce, lease id, tokens, layers (layers_of), '1' if they can't be admitted.
-- Answers {'unopened', nonce}, {'impossible'},
-- {'refused', now, admitted, what is used now, what was then, what it costs},
-- {'repeated' or 'admitted' or (an expired one) 'readmitted', now, expires, what is used now, tokens, layers, epoch,
-- when it was admitted, state}, of the limited counters in order. A shadow bucket may be told fuller than full.
local id, tokens, impossible = ARGV[3], int(ARGV[4]), ARGV[6] == '1'
local list, today = layers_of(ARGV[5]), homes_at(now)

local function joined(numbers) -- all of them have passed int(), or are sums of what has
  return format(string.rep('%d ', #numbers), unpack(numbers))
end

local function used_now()
  local used = {}
  for i = 1, #list, 2 do
    if list[i + 1] >= 0 then used[#used + 1] = used_of(list[i], list[i + 1], today) end
  end
  return joined(used)
end

local closed = unopened()
if closed then return closed end
reap()
local lease = lease_of(id)
prefetch(list, 2, today)
if lease and lease[STATE] ~= 'x' then
  local expires = lease[STATE] == 'o' and score('o', id) or lease[EXPIRES]
  return commit({ 'repeated', text(now), text(expires), used_now(), text(lease[TOKENS]), lease[LAYERS], epoch,
    text(lease[ADMITTED]), lease[STATE] })
end
if impossible then return commit({ 'impossible' }) end

local answer = lease and 'readmitted' or 'admitted'
lease = lease or { '', '', 0, now, 0, {} }
local charges, homes, at = lease[CHARGES], today, nil -- at: where the charges of an expired lease stand
if lease[STATE] == 'x' then
  homes, at = homes_at(lease[ADMITTED]), {}
  prefetch(list, 2, homes)
  for i = 1, #charges, WIDTH do at[charges[i]] = i end
end

local costs, stood, before, limited_costs, after, n, fits = {}, {}, {}, {}, {}, 0, true
for i = 1, #list, 2 do
  local field, limit, unit = list[i], list[i + 1], 1
  local cost, kind = sub(field, 2, 2) == 't' and tokens or 1, sub(field, 1, 1)
  if at and at[field] then cost = max(0, cost - charges[at[field] + 1]) end
  local used = tables[homes[kind]][field] or 0
  if kind == 'b' then used, unit = used_of(field, limit, homes), MINUTE end
  costs[i], stood[i] = cost, used
  if limit >= 0 then
    n = n + 1
    before[n], limited_costs[n], after[n] = used, cost, used + cost * unit
    if cost > 0 and used > (limit - cost) * unit and not shadow[field] then fits = false end
  end
end

if not fits then
  audit('refused', id, tokens, list, 2, 1, homes)
  return commit({ 'refused', text(now), text(lease[ADMITTED]), used_now(), joined(before), joined(limited_costs) })
end

local free = #charges + 1
for i = 1, #list, 2 do
  local field, limit, cost, where = list[i], list[i + 1], costs[i], at and at[list[i]]
  if cost > 0 or not where then
    local kind, level_after, charged = sub(field, 1, 1), 0, 0
    if kind == 'b' then
      level_after, charged = set_bucket(field, stood[i] + cost * MINUTE, limit), now
    elseif cost > 0 then
      put(homes[kind], field, min(stood[i] + cost, EXACT))
    end
    local held = where and charges[where + 1] or 0
    if not where then
      where, free = free, free + WIDTH
    end
    charges[where], charges[where + 1], charges[where + 2] = field, held + cost, limit
    charges[where + 3], charges[where + 4] = level_after, charged
  end
end
lease[LAYERS], lease[TOKENS] = ARGV[5], tokens
keep(id, lease, 'o', now + LEASE)
audit('reserved', id, tokens, list, 2, 1, homes)
sweep(#list)
local used = homes == today and joined(after) or used_now()
return commit({ answer, text(now), text(now + LEASE), used, text(tokens), ARGV[5], epoch, text(lease[ADMITTED]), 'o' })
