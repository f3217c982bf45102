-- The sums of quota/meters.py and quota/counters.py. A counter's field begins with its home: b(ucket), g(auge),
-- d(ay) or m(onth); then comes its unit: r(equests) or t(okens).

local function month_of(day) -- months since 1970-01 (Hinnant, "chrono-compatible low-level date algorithms")
  local z = day + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local mp = floor((5 * (doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))) + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0) - 1970) * 12 + month - 1
end

-- The hashes in which the counters of a request admitted then live, by the first letter of their fields.
local function homes_at(ms)
  local day = floor(ms / DAY)
  local month, last = month_of(day), floor((now - GRACE) / DAY)
  local over = { d = day < last, m = day < last and month < month_of(last) } -- ended so long ago: nothing corrects them
  return { b = 'b', g = 'g', d = 'd' .. text(day), m = 'm' .. text(month), day = day, month = month, over = over }
end

local function kind_of(field) return sub(field, 1, 1) end
local function is_tokens(field) return sub(field, 2, 2) == 't' end

local function level(b, limit)
  return min(max(0, b[1] - max(0, now - b[2]) * max(limit, b[3])), limit * MINUTE)
end

local function set_bucket(field, used, limit)
  used = min(max(0, used), limit * MINUTE)
  put('b', field, { used, max(0, now), limit })
  return used
end

-- In requests or tokens, a bucket in sixty-thousandths. After Redis lost its memory buckets begin full.
local function used_of(field, limit, homes)
  local kind = kind_of(field)
  local value = tables[homes[kind]][field] -- prefetch() read it
  if kind ~= 'b' then return value or 0 end
  if value then return level(value, limit) end
  return lost_ms > 0 and level({ limit * MINUTE, lost_ms, limit }, limit) or 0
end

local function add(field, amount, homes)
  local home = homes[kind_of(field)]
  local count = min(max(0, (get(home, field) or 0) + amount), EXACT)
  put(home, field, count > 0 and count)
end

-- Read all the counters of a list {field, ...} in one command for each home.
local function prefetch(list, stride, homes)
  local fields = {}
  for i = 1, #list, stride do
    local field = list[i]
    local home = homes[sub(field, 1, 1)] or error('unknown counter: ' .. field)
    local names = fields[home]
    if names then names[#names + 1] = field else fields[home] = { field } end
  end
  for home, names in pairs(fields) do fetch(home, names) end
end

-- Now and then, drop some of the buckets that have leaked empty, when there are more than this call needs.
local function sweep(at_most)
  if now % 4 ~= 0 or now - lost_ms < MINUTE or call('HLEN', BASE .. 'b') <= 2 * at_most then return end
  local fields = call('HRANDFIELD', BASE .. 'b', 4 * at_most)
  local known = fetch('b', fields)
  for _, field in ipairs(fields) do
    if known[field] and level(known[field], known[field][3]) == 0 then put('b', field, false) end
  end
end

local shadow = {} -- fields whose limits refuse nothing

-- Layers as a list {field, limit or -1, ...}; a limit that refuses nothing comes as -2 - limit.
local function layers_of(json)
  local list = cjson.decode(json)
  for i = 2, #list, 2 do
    if list[i] < -1 then
      shadow[list[i - 1]], list[i] = true, -2 - list[i]
    end
  end
  return list
end
