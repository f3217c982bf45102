-- Leases that this memory does not know, told by those who hold them. ARGV: clock, nonce, for how long after the loss of
-- the memory before (ms) they may hold concurrency again, 'open' or 'settled', then for each lease: id, tokens, when
-- admitted, layers, how long ago it ended (ms). Answers the ids that came too late, which are to be admitted again. What
-- has ended is never too late: it was used. It is passed over if it was restored with the account's durable usage.
open_account(keys, arguments)
local patience, is_open = int(ARGV[3]), ARGV[4] == 'open'
local is_late, late = epoch ~= '' and now >= lost_ms + patience, {}

local function unlimited(charges) -- for audit(): nothing was asked whether they fit
  local counters = charged_in(charges)
  for i = 3, #counters, 3 do counters[i] = -1 end
  return counters
end

local function adopt(id, tokens, admitted, layers)
  local list, at, charges = layers_of(layers), periods_at(admitted), {}
  prefetch(list, STRIDE)
  for i = 1, #list, STRIDE do
    local place = open_charge(charges, list[i])
    for j = 1, NUM do
      local kind = KINDS[j]
      -- Buckets begin full: they hold it already.
      if kind ~= 'b' and is_counted(list[i + j], j) and (kind ~= 'g' or is_open) then
        charges[place + j], charges[place + NUM + j] = 0, limit_of(list[i + j])
        correct(charges, place, j, IS_TOKENS[j] and tokens or 1, at)
      end
    end
  end
  if AUDIT then audit('adopted', id, tokens, unlimited(charges), at) end
  if AUDIT and not is_open then audit('settled', id, tokens, unlimited(charges), at) end
  local lease = { '', layers, tokens, admitted, now + LEASE, is_open and charges or {} }
  keep(id, lease, is_open and 'o' or 'f', now + LEASE)
end

for i = 5, #ARGV, 5 do
  local id = ARGV[i]
  local lease = lease_of(id)
  score('f', id) -- an error now if it isn't a sorted set
  if lease then
    if lease[STATE] == 'x' then late[#late + 1] = id end
  elseif is_open and is_late then
    late[#late + 1] = id
  elseif is_open or epoch == '' or now - int(ARGV[i + 4]) + ROWS > int(opened_ms) then
    adopt(id, int(ARGV[i + 1]), int(ARGV[i + 2]), ARGV[i + 3])
  end
end
unopened()
return commit(late)
