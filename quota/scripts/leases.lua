-- Leases: what each has in force, and how it ends. The rules are those of quota/book.py.
-- A lease is kept as {state, layers, tokens, admitted, expires, charges}, state o(pen), x (expired) or f(inished), the
-- tokens last reported in hash u. Queue o lists the open ones by when they expire, queue f all others by when they are
-- forgotten.
local STATE, LAYERS, TOKENS, ADMITTED, EXPIRES, CHARGES = 1, 2, 3, 4, 5, 6

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

local function overdue(id, expires)
  local lease = lease_of(id)
  if not lease then return forget(id, 'o') end
  local at, used, charges = periods_at(lease[ADMITTED]), get('u', id) or 0, lease[CHARGES]
  prefetch(charges, WIDTH)
  for i = 1, #charges, WIDTH do
    for j = 1, NUM do
      if charges[i + j] >= 0 then
        if KINDS[j] == 'g' then
          correct(charges, i, j, 0, at)
        elseif KINDS[j] ~= 'b' and IS_TOKENS[j] then
          correct(charges, i, j, used, at)
        end
      end
    end
  end
  lease[EXPIRES] = expires
  if AUDIT then audit('expired', id, used, charged_in(charges), at) end
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
