-- ARGV: clock, nonce, rows as JSON [["level:name", day, requests, tokens], ...]; 'more' to come before the account is
-- opened with them, or 'open' it: when Redis lost its memory (0: it did not), epoch. Answers how many rows were new, -1
-- if the account is not ours to open, or {'unopened', nonce}.
open_account(keys, arguments)
local rows, opening, count = cjson.decode(ARGV[3]), ARGV[4], 0
if opening then
  if mark ~= 'wait ' .. ARGV[2] then return -1 end -- open already, or this memory is not the one that was asked
  if opening == 'open' then new_mark = 'open ' .. text(int(ARGV[5])) .. ' ' .. ARGV[6] .. ' ' .. text(max(0, now)) end
else
  local closed = unopened()
  if closed then return closed end
end

local seen, names, layers = 'r' .. text(today.m), {}, {}
for i, row in ipairs(rows) do
  names[i], layers[i] = text(int(row[2])) .. ' ' .. row[1], row[1]
  if int(row[3]) < 0 or int(row[4]) < 0 then error('usage below 0') end
end
fetch(seen, names)
prefetch(layers, 1)

for i, row in ipairs(rows) do
  local layer, day, requests, tokens = row[1], int(row[2]), int(row[3]), int(row[4])
  if month_of(day) == today.m and not get(seen, names[i]) then
    put(seen, names[i], '1')
    local counters = {}
    for j = 1, NUM do
      if KINDS[j] == 'm' or KINDS[j] == 'd' and day == today.d then
        add(layer, j, IS_TOKENS[j] and tokens or requests, today)
        counters[#counters + 1], counters[#counters + 2], counters[#counters + 3] = layer, j, -1
      end
    end
    if AUDIT then audit('restored', '', tokens, counters, today) end
    count = count + 1
  end
end
return commit(count)
