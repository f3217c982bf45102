-- The sums of quota/meters.py and quota/counters.py. A layer's counters of today are one record in hash c: its day and
-- its month, then each dimension in turn (SLOTS): a count, or a bucket as used, updated, limit (-1: never charged).
-- When a day is over, its counts move from the record to hash d<day>, where late settlements still correct them; those
-- of a month to m<month>. A field there is the dimension's code and the layer. KINDS are b(ucket), g(auge), d(ay) and
-- m(onth).

local function level(record, slot, limit)
  local leaked = max(0, now - record[slot + 1]) * max(limit, record[slot + 2])
  return min(max(0, record[slot] - leaked), limit * MINUTE)
end

local function set_bucket(record, slot, used, limit)
  used = int(min(max(0, used), limit * MINUTE))
  record[slot], record[slot + 1], record[slot + 2] = used, max(0, now), limit
  return used
end

-- Read the counters of all the layers in a list {layer, ...} in one command.
local function prefetch(list, stride)
  local names = {}
  for i = 1, #list, stride do names[#names + 1] = list[i] end
  local records = fetch('c', names)
  for i = 1, #names do records[names[i]] = records[names[i]] or { unpack(EMPTY) } end
  begin_all(names, 'd')
  begin_all(names, 'm')
end

local function record_of(name)
  local known = tables.c and tables.c[name]
  if not known then
    prefetch({ name }, 1)
    known = tables.c[name]
  end
  return known
end

-- Whether a count of these periods is the record's own, not one of a period that is over.
local function is_in(record, kind, at)
  return at[kind] == record[PERIOD_AT[kind] or 0]
end

-- In requests or tokens, a bucket in sixty-thousandths. After Redis lost its memory buckets begin full.
local function used_of(record, name, j, limit, at)
  local kind, slot = KINDS[j], SLOTS[j]
  if kind == 'b' then
    if record[slot + 2] >= 0 then return level(record, slot, limit) end
    return lost_ms > 0 and level({ limit * MINUTE, lost_ms, limit }, 1, limit) or 0
  end
  if is_in(record, kind, at) then return record[slot] end
  return get(kind .. text(at[kind]), CODES[j] .. name) or 0
end

-- The caller puts the record.
local function set_count(record, name, j, count, at)
  count = min(max(0, count), EXACT)
  local kind = KINDS[j]
  if is_in(record, kind, at) then
    record[SLOTS[j]] = count
  else
    put(kind .. text(at[kind]), CODES[j] .. name, count > 0 and count)
  end
end

local function add(name, j, amount, at)
  local record = record_of(name)
  set_count(record, name, j, used_of(record, name, j, 0, at) + amount, at)
  put('c', name, record)
end
