-- Writing, at the end of a script. Nothing here can fail but for want of memory, which Redis refuses at the
-- first write: every key was read, so its type is right, and every value has passed text().
local IDLE = 33 * DAY -- longer than any budget lives (31 days and GRACE) after the last call that touched it
local KEEP = 10 * MINUTE -- how often the tables of a busy account are told to live on

local function write(command, suffix, arguments)
  for first = 1, #arguments, 1000 do
    call(command, BASE .. suffix, unpack(arguments, first, min(first + 999, #arguments)))
  end
end

local function written(value)
  if type(value) == 'table' then return format('%d %d %d', int(value[1]), int(value[2]), int(value[3])) end
  return type(value) == 'number' and text(value) or value
end

-- What to write of one table: fields and values (scores and members, for a queue), and what to remove.
local function changes(suffix, is_queue)
  local set, del, known, n = {}, {}, tables[suffix], 0
  for field in pairs(changed[suffix]) do
    if known[field] then
      n = n + 2
      set[is_queue and n or n - 1] = field
      set[is_queue and n - 1 or n] = written(known[field])
    else
      del[#del + 1] = field
    end
  end
  return set, del
end

-- How many leases are open now, and whether any will be.
local function num_open()
  local before, removed = call('ZCARD', BASE .. 'o'), 0
  for id in pairs(changed.o or {}) do
    if tables.o[id] then return before, true end
    removed = removed + 1
  end
  return before, before > removed
end

-- How long a table lives that is not told to live on. A bucket is empty after a minute. All leases are forgotten in
-- time, unless some are open: what they hold of a budget has still to be corrected, however late they are seen again.
local function lifetime(suffix, is_busy)
  local kind = sub(suffix, 1, 1)
  if kind == 'b' then return KEEP + 2 * MINUTE end
  if kind == 'd' then return KEEP + DAY + 2 * GRACE end
  return (is_busy or epoch == '' or kind == 'm' or kind == 'r' or kind == 'a') and IDLE or (PERIODS + 1) * LEASE
end

-- Tables are told to live on now and then, and when they may just have been made; those of leases all at once, when
-- the first lease opens and when the last one ends.
local function keep_alive(was_busy, is_busy)
  local told, is_due = {}, epoch == '' or now - kept_ms >= KEEP or now < tonumber(kept_ms)
  for suffix in pairs(changed) do told[suffix] = (is_due or fresh[suffix] or suffix == 'f') and true or nil end
  if #log > 0 then told.a = true end
  if is_due or not (was_busy and is_busy) then
    for _, suffix in ipairs({ 'l', 'u', 'g', 'o', 'f' }) do told[suffix] = true end
  end
  if is_due then
    local homes = homes_at(now)
    for _, suffix in ipairs({ 'b', homes.d, homes.m, 'r' .. text(homes.month) }) do told[suffix] = true end
    local value = new_mark or epoch ~= '' and 'open ' .. text(lost_ms) .. ' ' .. epoch .. ' ' .. opened_ms
    if value then call('SET', BASE .. 'e', value .. ' ' .. text(max(0, now)), 'PX', format('%d', IDLE + DAY)) end
  end
  for suffix in pairs(told) do call('PEXPIRE', BASE .. suffix, format('%d', lifetime(suffix, is_busy))) end
end

local function commit(...) -- passes on what the script answers
  if not (next(changed) or new_mark or #log > 0) then return ... end
  local num_before, is_busy = num_open()
  local plan = {}
  for suffix in pairs(changed) do plan[suffix] = { changes(suffix, suffix == 'o' or suffix == 'f') } end
  for suffix, planned in pairs(plan) do
    local is_queue = suffix == 'o' or suffix == 'f'
    write(is_queue and 'ZADD' or 'HSET', suffix, planned[1])
    write(is_queue and 'ZREM' or 'HDEL', suffix, planned[2])
  end
  for _, entry in ipairs(log) do call('XADD', BASE .. 'a', 'MAXLEN', '~', 1000000, '*', unpack(entry)) end
  keep_alive(num_before > 0, is_busy)
  return ...
end
