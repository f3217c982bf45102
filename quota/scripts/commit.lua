-- Writing, at the end of a script. Nothing here can fail but for want of memory, which Redis refuses at the
-- first write: every key was read, so its type is right, and every value has passed text().
local IDLE = 33 * DAY -- longer than any budget lives (31 days and GRACE) after the last call that touched it

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

-- Whether leases will be open. Looks before anything is written.
local function leaves_open()
  local removed = 0
  for id in pairs(changed.o or {}) do
    if tables.o[id] then return true end
    removed = removed + 1
  end
  return call('ZCARD', BASE .. 'o') > removed
end

-- How long a table may lie untouched; nil for those of leases, which must go together. A bucket is empty after a minute.
local function lifetime(suffix)
  local kind = sub(suffix, 1, 1)
  if kind == 'b' then return 2 * MINUTE end
  if kind == 'd' then return DAY + 2 * GRACE end
  return (kind == 'm' or kind == 'r') and IDLE
end

local function commit(...) -- passes on what the script answers
  if not (next(changed) or new_mark or #log > 0) then return ... end
  -- All leases are forgotten in time, unless some are open: what they hold of a budget has still to be corrected,
  -- however late the account is seen again.
  local leases_ms, plan = format('%d', leaves_open() and IDLE or (PERIODS + 1) * LEASE), {}
  for suffix in pairs(changed) do plan[suffix] = { changes(suffix, suffix == 'o' or suffix == 'f') } end
  for suffix, planned in pairs(plan) do
    local is_queue = suffix == 'o' or suffix == 'f'
    write(is_queue and 'ZADD' or 'HSET', suffix, planned[1])
    write(is_queue and 'ZREM' or 'HDEL', suffix, planned[2])
    local ms = lifetime(suffix)
    if ms then call('PEXPIRE', BASE .. suffix, format('%d', ms)) end
  end
  for _, suffix in ipairs({ 'l', 'u', 'g', 'o', 'f' }) do call('PEXPIRE', BASE .. suffix, leases_ms) end
  for _, entry in ipairs(log) do call('XADD', BASE .. 'a', 'MAXLEN', '~', 1000000, '*', unpack(entry)) end
  if #log > 0 then call('PEXPIRE', BASE .. 'a', format('%d', IDLE)) end
  if new_mark then call('SET', BASE .. 'e', new_mark) end
  call('PEXPIRE', BASE .. 'e', format('%d', IDLE + DAY))
  return ...
end
