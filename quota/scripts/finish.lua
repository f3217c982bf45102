-- ARGV: clock, nonce, lease id, tokens, 'settled' or 'released'. Answers 1, 0 for a lease that was
-- ended before, or the epoch of the account's memory for one that is not known in it ('': it is of no memory yet).
local id, tokens, event = ARGV[3], int(ARGV[4]), ARGV[5]
if event ~= 'settled' and event ~= 'released' then error('not an ending: ' .. tostring(event)) end
reap()
local lease = lease_of(id)
if not lease then return commit(epoch) end
if lease[STATE] == 'f' then return commit(0) end

local charges, homes = lease[CHARGES], homes_at(lease[ADMITTED])
prefetch(charges, WIDTH, homes)
for i = 1, #charges, WIDTH do
  if kind_of(charges[i]) == 'g' or event == 'released' then
    correct(charges, i, 0, homes)
  elseif is_tokens(charges[i]) then
    correct(charges, i, tokens, homes)
  end
end
audit(event, id, tokens, charges, WIDTH, 2, homes)
if lease[STATE] == 'o' then lease[EXPIRES] = score('o', id) or 0 end
lease[CHARGES] = {}
if get('u', id) then put('u', id, false) end
keep(id, lease, 'f', now + LEASE)
return commit(1)
