-- ARGV: clock, nonce, then lease id and tokens used so far, for each lease. Answers the epoch of
-- the account's memory ('': it is of no memory yet), then the ids to be admitted again.
open_account(keys, arguments)
reap()
local ids, gone = {}, { epoch }
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
fetch('o', ids, 'ZMSCORE')
fetch('u', ids)
for i = 3, #ARGV, 2 do
  local id, used = ARGV[i], int(ARGV[i + 1])
  local expires = score('o', id)
  if expires and expires > now then
    put('o', id, now + LEASE)
    if used > (get('u', id) or 0) then put('u', id, used) end
  else
    if expires then overdue(id, expires) end
    local lease = lease_of(id)
    if not lease or lease[STATE] ~= 'f' then gone[#gone + 1] = id end
  end
end
return commit(gone)
