-- Leases: what each has in force, and how it ends. The rules are those of quota/book.py.
-- A lease is kept as {state, layers, tokens, admitted, expires, charges}, state o(pen), x (expired) or f(inished),
-- its charges as {field, amount, limit or -1, bucket's level, charged_ms, ...}, the tokens last reported in hash u.
-- Queue o lists the open ones by when they expire, queue f all others by when they are forgotten.
local STATE, LAYERS, TOKENS, ADMITTED, EXPIRES, CHARGES = 1, 2, 3, 4, 5, 6
local WIDTH = 5

local function lease_of(id)
  local packed = get('l', id)
  return packed and cmsgpack.unpack(packed)
end

local function score(queue, id)
  local known = tables[queue]
  if known and known[id] ~= nil then return known[id] end
  return fetch(queue, { id }, 'ZMSCORE')[id]
end

local function queue_of(state) return state == 'o' and 'o' or 'f' end

local function keep(id, lease, state, due)
  local from, to = lease[STATE], queue_of(state)
  if from ~= '' and queue_of(from) ~= to then put(queue_of(from), id, false) end
  lease[STATE] = state
  put('l', id, cmsgpack.pack(lease))
  put(to, id, due)
end

local function forget(id, queue)
  if get('l', id) then put('l', id, false) end
  if get('u', id) then put('u', id, false) end
  put(queue, id, false)
end

local function correct_bucket(charges, i, change)
  local field, b = charges[i], get('b', charges[i])
  if not b or level(b, b[3]) == 0 then b = { 0, now, max(0, charges[i + 2]) } end
  local left = max(0, charges[i + 3] - max(0, now - charges[i + 4]) * b[3])
  set_bucket(field, level(b, b[3]) + max(min(change, b[3]) * MINUTE, -left), b[3])
end

local function correct(charges, i, amount, homes)
  local change = amount - charges[i + 1]
  charges[i + 1] = amount
  if change == 0 then return end
  if kind_of(charges[i]) == 'b' then
    correct_bucket(charges, i, change)
  elseif not homes.over[kind_of(charges[i])] then
    add(charges[i], change, homes)
  end
end

local function audit(event, id, tokens, list, stride, limit_at, homes)
  if not AUDIT then return end
  if #log == 0 then call('XLEN', BASE .. 'a') end -- an error now if it isn't a stream
  local entry = { '.event', event, '.now', text(now), '.lease', id, '.tokens', text(tokens) }
  for i = 1, #list, stride do
    local field, limit = list[i], limit_at and list[i + limit_at] or -1
    local period = homes[({ d = 'day', m = 'month' })[kind_of(field)]] or 0
    local used = used_of(field, max(0, limit), homes)
    if stride == 2 and shadow[field] then limit = -1 end -- of a request, whose limits these are
    entry[#entry + 1] = field
    entry[#entry + 1] = text(period) .. ' ' .. text(used) .. ' ' .. text(limit)
  end
  log[#log + 1] = entry
end

local function overdue(id, expires)
  local lease = lease_of(id)
  if not lease then return forget(id, 'o') end
  local homes, used, charges = homes_at(lease[ADMITTED]), get('u', id) or 0, lease[CHARGES]
  prefetch(charges, WIDTH, homes)
  for i = 1, #charges, WIDTH do
    if kind_of(charges[i]) == 'g' then
      correct(charges, i, 0, homes)
    elseif kind_of(charges[i]) ~= 'b' and is_tokens(charges[i]) then
      correct(charges, i, used, homes)
    end
  end
  lease[EXPIRES] = expires
  audit('expired', id, used, charges, WIDTH, 2, homes)
  local forget_at = expires + PERIODS * LEASE
  keep(id, lease, 'x', forget_at)
  if forget_at <= now then forget(id, 'f') end
end

local function due(queue)
  return call('ZRANGEBYSCORE', BASE .. queue, '-inf', format('%d', now), 'WITHSCORES', 'LIMIT', 0, REAP)
end

local function reap()
  -- An account that is not open yet must know what has ended: its usage is not to be restored.
  local open, ended = due('o'), epoch ~= '' and due('f') or {}
  for i = 1, #open, 2 do overdue(open[i], int(open[i + 1])) end
  for i = 1, #ended, 2 do forget(ended[i], 'f') end
end
