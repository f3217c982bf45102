-- How a record goes on to the day and the month of today.

-- Reads, in one command for each period, what begin() needs of these layers.
local function read_periods(names, kind)
  local at, fields, new = PERIOD_AT[kind], {}, kind .. text(today[kind])
  local function want(home, field)
    fields[home] = fields[home] or {}
    fields[home][#fields[home] + 1] = field
  end
  for _, name in ipairs(names) do
    for j = 1, NUM do
      if KINDS[j] == kind then
        local record, field = tables.c[name], CODES[j] .. name
        want(new, field)
        if record[SLOTS[j]] > 0 then want(kind .. text(record[at]), field) end
      end
    end
  end
  for home, list in pairs(fields) do fetch(home, list) end
end

-- Moves the counts of a period that is over, or was never begun, out of the record, and begins today's in it.
local function begin(name, kind)
  local record, at = tables.c[name], PERIOD_AT[kind]
  local old, new = kind .. text(record[at]), kind .. text(today[kind])
  local is_kept = record[at] >= 0
  for j = 1, NUM do
    if KINDS[j] == kind then
      local slot, field = SLOTS[j], CODES[j] .. name
      if record[slot] > 0 then put(old, field, record[slot]) end
      record[slot] = get(new, field) or 0
      if record[slot] > 0 then
        put(new, field, false)
        is_kept = true
      end
    end
  end
  record[at] = today[kind]
  if is_kept then put('c', name, record) end
end

local function begin_all(names, kind)
  local stale = {}
  for _, name in ipairs(names) do
    if tables.c[name][PERIOD_AT[kind]] < today[kind] then stale[#stale + 1] = name end
  end
  if #stale == 0 then return end
  read_periods(stale, kind)
  for _, name in ipairs(stale) do begin(name, kind) end
end
