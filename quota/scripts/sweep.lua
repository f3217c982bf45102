-- Whether nothing is lost if this record is, today's.
local function is_dead(record)
  for j = 1, NUM do
    local slot = SLOTS[j]
    local used = record[slot]
    if KINDS[j] == 'b' then used = level(record, slot, max(0, record[slot + 2])) end
    if used > 0 then return false end
  end
  return true
end

-- A call that makes records looks at a few others, and drops those that say nothing any more; now and then one looks at
-- more.
local function sweep(num_layers)
  if now - lost_ms < MINUTE or not (fresh.c or is_due()) then return end
  local names = call('HRANDFIELD', BASE .. 'c', is_due() and 256 or 4 * num_layers)
  prefetch(names, 1)
  for _, name in ipairs(names) do
    if tables.c[name] and is_dead(tables.c[name]) then put('c', name, false) end
  end
end
