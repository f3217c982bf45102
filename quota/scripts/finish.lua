-- ARGV: clock, nonce, lease id, tokens, 'settled' or 'released'. Answers 1, 0 for a lease that was
-- ended before, or the epoch of the account's memory for one that is not known in it ('': it is of no memory yet).
open_account(keys, arguments)
local id, tokens, event = ARGV[3], int(ARGV[4]), ARGV[5]
if event ~= 'settled' and event ~= 'released' then error('not an ending: ' .. tostring(event)) end
reap()
local lease = lease_of(id)
if not lease then return commit(epoch) end
if lease[STATE] == 'f' then return commit(0) end
score('f', id) -- an error now if it isn't a sorted set

local charges, at = lease[CHARGES], periods_at(lease[ADMITTED])
prefetch(charges, WIDTH)
for i = 1, #charges, WIDTH do
  for j = 1, NUM do
    if charges[i + j] >= 0 then
      if KINDS[j] == 'g' or event == 'released' then
        correct(charges, i, j, 0, at)
      elseif IS_TOKENS[j] then
        correct(charges, i, j, tokens, at)
      end
    end
  end
end
if AUDIT then audit(event, id, tokens, charged_in(charges), at) end
if lease[STATE] == 'o' then lease[EXPIRES] = score('o', id) or 0 end
lease[CHARGES] = {}
if get('u', id) then put('u', id, false) end
keep(id, lease, 'f', now + LEASE)
return commit(1)
