-- What a lease has in force: {layer, amount on each dimension in turn (-1: not charged), limit of each (-1: none), and of
-- each that is a bucket its level after the charge and when that was, ...}. And the audit log of every step.
local LEVELS, WIDTH = {}, 2 * NUM + 1 -- where the level of a bucket is, after the layer
for j = 1, NUM do
  if KINDS[j] == 'b' then
    LEVELS[j], WIDTH = WIDTH, WIDTH + 2
  end
end

-- Room for one more layer; answers where it stands.
local function open_charge(charges, name)
  local i = #charges + 1
  charges[i] = name
  for k = i + 1, i + 2 * NUM do charges[k] = -1 end
  for k = i + 2 * NUM + 1, i + WIDTH - 1 do charges[k] = 0 end
  return i
end

local function correct_bucket(charges, i, j, change)
  local record, slot, at = record_of(charges[i]), SLOTS[j], i + LEVELS[j]
  if record[slot + 2] < 0 or level(record, slot, record[slot + 2]) == 0 then
    set_bucket(record, slot, 0, max(0, charges[i + NUM + j]))
  end
  local limit = record[slot + 2]
  local left = max(0, charges[at] - max(0, now - charges[at + 1]) * limit)
  set_bucket(record, slot, level(record, slot, limit) + max(min(change, limit) * MINUTE, -left), limit)
  put('c', charges[i], record)
end

local function correct(charges, i, j, amount, at)
  local change = amount - charges[i + j]
  charges[i + j] = amount
  if change == 0 then return end
  if KINDS[j] == 'b' then
    correct_bucket(charges, i, j, change)
  elseif not at.over[KINDS[j]] then
    add(charges[i], j, change, at)
  end
end

local function charged_in(charges)
  local counters = {}
  for i = 1, #charges, WIDTH do
    for j = 1, NUM do
      if charges[i + j] >= 0 then
        counters[#counters + 1], counters[#counters + 2], counters[#counters + 3] = charges[i], j, charges[i + NUM + j]
      end
    end
  end
  return counters
end

local function audit(event, id, tokens, counters, at)
  if #log == 0 then call('XLEN', BASE .. 'a') end -- an error now if it isn't a stream
  local entry = { '.event', event, '.now', text(now), '.lease', id, '.tokens', text(tokens) }
  for i = 1, #counters, 3 do
    local name, j, limit = counters[i], counters[i + 1], counters[i + 2]
    local used = used_of(record_of(name), name, j, max(0, limit_of(limit)), at)
    entry[#entry + 1] = CODES[j] .. name
    entry[#entry + 1] = text(at[KINDS[j]] or 0) .. ' ' .. text(used) .. ' ' .. text(max(-1, limit))
  end
  log[#log + 1] = entry
end
