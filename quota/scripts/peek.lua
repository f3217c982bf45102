-- ARGV: clock, nonce, layers (layers_of). Answers {now, what is used of the limited counters}.
local closed = unopened()
if closed then return closed end
local list, homes, used = layers_of(ARGV[3]), homes_at(now), {}
reap()
prefetch(list, 2, homes)
for i = 1, #list, 2 do
  if list[i + 1] >= 0 then used[#used + 1] = text(used_of(list[i], list[i + 1], homes)) end
end
return commit({ text(now), table.concat(used, ' ') })
