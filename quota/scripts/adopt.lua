-- Leases that this memory does not know, told by those who hold them. ARGV: clock, nonce, for how long after the loss of
-- the memory before (ms) they may hold concurrency again, 'open' or 'settled', then for each lease: id, tokens, when
-- admitted, layers, how long ago it ended (ms). Answers the ids that came too late, which are to be admitted again. What
-- has ended is never too late: it was used. It is passed over if it was restored with the account's durable usage.
local patience, is_open = int(ARGV[3]), ARGV[4] == 'open'
local is_late, late = epoch ~= '' and now >= lost_ms + patience, {}

local function adopt(id, tokens, admitted, layers)
  local list, homes, charges, n = layers_of(layers), homes_at(admitted), {}, 0
  for i = 1, #list, 2 do
    local kind = kind_of(list[i])
    if kind ~= 'b' and (kind ~= 'g' or is_open) then -- buckets begin full: they hold it already
      charges[n + 1], charges[n + 2] = list[i], is_tokens(list[i]) and tokens or 1
      charges[n + 3], charges[n + 4], charges[n + 5] = list[i + 1], 0, 0
      n = n + WIDTH
    end
  end
  prefetch(charges, WIDTH, homes)
  for i = 1, n, WIDTH do
    if not homes.over[kind_of(charges[i])] then add(charges[i], charges[i + 1], homes) end
  end
  audit('adopted', id, tokens, charges, WIDTH, nil, homes)
  if not is_open then audit('settled', id, tokens, charges, WIDTH, nil, homes) end
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
