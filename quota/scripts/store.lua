-- One call's view of one account. What is read is kept, what is changed is only noted, and commit() writes it
-- all at the very end: a function that dies is not rolled back, so whatever can fail must fail before.
-- The library begins with it, after the constants of quota/lua.py. Each call sets anew what it knows (call.lua).
local floor, max, min, sub, format, match -- Lua's own, and Redis's: see call.lua
local MINUTE, DAY, EXACT = 60000, 86400000, 9007199254740991
local NUM = #CODES
local call, KEYS, ARGV
local BASE -- every key of the account begins with it, so all share one hash tag
local now, today -- ms, and its periods
local mark -- 'open <when Redis last lost its memory, or 0> <epoch> <when opened> <when kept alive>'
local lost_ms, epoch, opened_ms, kept_ms -- epoch '': of no memory, where the account is not open
local tables, changed -- of hashes (field to value) and sorted sets (member to score); false: not in it
local log, fresh, new_mark -- fresh: tables that lacked something, and may have to be made

local function int(value)
  local n = tonumber(value)
  if not n or n % 1 ~= 0 or n > EXACT or n < -EXACT then
    error('not an exact integer: ' .. tostring(value))
  end
  return n
end

local function text(n) -- never tostring(): 1e+15, -0
  return format('%d', int(n))
end

local IS_NUMBER = { d = true, m = true, u = true, o = true, f = true }

local function record_in(packed) -- of a layer's counters (counters.lua)
  local found = cmsgpack.unpack(packed)
  if #found ~= #EMPTY then error('not a record of ' .. #EMPTY .. ' numbers') end
  for i = 1, #EMPTY do
    local n = found[i]
    if n % 1 ~= 0 or n > EXACT or n < -EXACT then error('not an exact integer: ' .. tostring(n)) end
  end
  return found
end

-- Read these fields of a hash (or, with ZMSCORE, members of a sorted set) in one command. Counts and scores become
-- numbers, records tables.
local function fetch(suffix, fields, command)
  local known, ask, kind = tables[suffix], fields, sub(suffix, 1, 1)
  local parse = IS_NUMBER[kind] and int or kind == 'c' and record_in
  if known then
    ask = {}
    for i = 1, #fields do
      if known[fields[i]] == nil then ask[#ask + 1] = fields[i] end
    end
  else
    known = {}
    tables[suffix] = known
  end
  for first = 1, #ask, 1000 do
    local values = call(command or 'HMGET', BASE .. suffix, unpack(ask, first, min(first + 999, #ask)))
    for i = 1, #values do
      local value = values[i]
      if not value then fresh[suffix] = true end
      known[ask[first + i - 1]] = value and parse and parse(value) or value
    end
  end
  return known
end

local function get(suffix, field)
  local known = tables[suffix]
  if known and known[field] ~= nil then return known[field] end
  return fetch(suffix, { field })[field]
end

local function put(suffix, field, value) -- false removes it. What is put into must have been read
  local known, dirty = tables[suffix], changed[suffix]
  if not known then
    known = {}
    tables[suffix] = known
  end
  if not dirty then
    dirty = {}
    changed[suffix] = dirty
  end
  known[field] = value
  dirty[field] = true
end

-- The account's marker when it may not be admitted to yet: {'unopened', nonce}. RedisLedger._open() says why.
local function unopened()
  if mark then
    local nonce = match(mark, '^wait (.+)$')
    return nonce and { 'unopened', nonce }
  end
  call('SET', BASE .. 'e', 'wait ' .. ARGV[2], 'PX', MINUTE)
  return { 'unopened', ARGV[2] }
end
