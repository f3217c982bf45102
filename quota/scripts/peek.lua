-- ARGV: clock, nonce, layers (layers_of). Answers {now, what is used of the limited counters}.
open_account(keys, arguments)
local closed = unopened()
if closed then return closed end
local list, used = layers_of(ARGV[3]), {}
reap()
prefetch(list, STRIDE)
for i = 1, #list, STRIDE do
  for j = 1, NUM do
    local limit = limit_of(list[i + j])
    if limit >= 0 then used[#used + 1] = text(used_of(record_of(list[i]), list[i], j, limit, today)) end
  end
end
return commit({ text(now), table.concat(used, ' ') })
