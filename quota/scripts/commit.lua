-- Writing, at the end of a script. Nothing here can fail but for want of memory, which Redis refuses at the
-- first write: every key was read, so its type is right, and every value is exact.
local IDLE = 33 * DAY -- longer than any budget lives (31 days and GRACE) after the last call that touched it
local KEEP = 10 * MINUTE -- how often the tables of a busy account are told to live on

local function write(command, suffix, arguments)
  for first = 1, #arguments, 1000 do
    call(command, BASE .. suffix, unpack(arguments, first, min(first + 999, #arguments)))
  end
end

local function written(value)
  if type(value) == 'table' then return cmsgpack.pack(value) end
  return type(value) == 'number' and text(value) or value
end

local function is_queue(suffix) return suffix == 'o' or suffix == 'f' end

-- What to write of one table: fields and values (scores and members, for a queue), and what to remove.
local function changes(suffix)
  local set, del, known, queue, n = {}, {}, tables[suffix], is_queue(suffix), 0
  for field in pairs(changed[suffix]) do
    local value = written(known[field])
    if not value then
      del[#del + 1] = field
    elseif queue then
      set[n + 1], set[n + 2], n = value, field, n + 2
    else
      set[n + 1], set[n + 2], n = field, value, n + 2
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

-- How long a table lives that is not told to live on. All leases are forgotten in time, unless some are open: what they
-- hold of a budget has still to be corrected, however late they are seen again.
local function lifetime(suffix, is_busy)
  local kind = sub(suffix, 1, 1)
  if kind == 'd' then return KEEP + DAY + 2 * GRACE end
  local is_of_leases = kind == 'l' or kind == 'u' or kind == 'o' or kind == 'f'
  return is_of_leases and epoch ~= '' and not is_busy and (PERIODS + 1) * LEASE or IDLE
end

local function is_due()
  return epoch == '' or now - kept_ms >= KEEP or now < tonumber(kept_ms)
end

-- Tables are told to live on now and then, and when they may just have been made; those of leases all at once, when
-- the first lease opens and when the last one ends.
local function keep_alive(was_busy, is_busy)
  local told = {}
  for suffix in pairs(changed) do told[suffix] = (is_due() or fresh[suffix] or suffix == 'f') and true or nil end
  if #log > 0 then told.a = true end
  if is_due() or not (was_busy and is_busy) then
    for _, suffix in ipairs({ 'l', 'u', 'o', 'f' }) do told[suffix] = true end
  end
  if is_due() then
    local day, month = text(today.d), text(today.m)
    for _, suffix in ipairs({ 'c', 'd' .. day, 'm' .. month, 'r' .. month }) do told[suffix] = true end
    local value = new_mark or epoch ~= '' and 'open ' .. text(lost_ms) .. ' ' .. epoch .. ' ' .. opened_ms
    if value then call('SET', BASE .. 'e', value .. ' ' .. text(max(0, now)), 'PX', format('%d', IDLE + DAY)) end
  end
  for suffix in pairs(told) do call('PEXPIRE', BASE .. suffix, format('%d', lifetime(suffix, is_busy))) end
end

local function commit(...) -- passes on what the script answers
  if not (next(changed) or new_mark or #log > 0) then return ... end
  local num_before, is_busy = num_open()
  local plan = {}
  for suffix in pairs(changed) do plan[suffix] = { changes(suffix) } end
  -- What needs memory comes first: after another write it would no longer be refused.
  for suffix, planned in pairs(plan) do write(is_queue(suffix) and 'ZADD' or 'HSET', suffix, planned[1]) end
  for suffix, planned in pairs(plan) do write(is_queue(suffix) and 'ZREM' or 'HDEL', suffix, planned[2]) end
  for _, entry in ipairs(log) do call('XADD', BASE .. 'a', 'MAXLEN', '~', 1000000, '*', unpack(entry)) end
  keep_alive(num_before > 0, is_busy)
  return ...
end
