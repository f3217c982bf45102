-- What a step begins with, and how Redis comes to know it.

local function clock(given) -- given by tests only; else ''
  if given ~= '' then return int(given) end
  local t = call('TIME')
  return t[1] * 1000 + floor(t[2] / 1000)
end

-- While a library is loaded there is nothing but Redis's own way to register functions, not even `math`.
local function find_globals()
  floor, max, min = math.floor, math.max, math.min
  sub, format, match = string.sub, string.format, string.match
  call = redis.call
end

local function open_call(keys, arguments)
  if not call then find_globals() end
  KEYS, ARGV = keys, arguments
  BASE = sub(KEYS[1], 1, -2)
  now = clock(ARGV[1])
  today = periods_at(now)
  tables, changed, log, fresh, new_mark = {}, {}, {}, {}, nil
end

local function read_mark()
  mark = call('GET', BASE .. 'e')
  lost_ms, epoch, opened_ms, kept_ms = match(mark or '', '^open (%d+) (%S+) (%d+) (%d+)$')
  lost_ms, epoch = int(lost_ms or 0), epoch or ''
end

-- Of an account; a step of none needs open_call alone.
local function open_account(keys, arguments)
  open_call(keys, arguments)
  read_mark()
end
