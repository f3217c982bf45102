-- ARGV: clock, nonce, rows as JSON [["level:name", day, requests, tokens], ...]; to open the account with them: when
-- Redis lost its memory (0: it did not), epoch. Answers how many rows were new, or {'unopened', nonce}.
local rows, opens, today, count = cjson.decode(ARGV[3]), ARGV[4] ~= nil, homes_at(now), 0
if opens then
  if mark ~= 'wait ' .. ARGV[2] then return -1 end -- open already, or this memory is not the one that was asked
  new_mark = 'open ' .. text(int(ARGV[4])) .. ' ' .. ARGV[5]
else
  local closed = unopened()
  if closed then return closed end
end

local seen = 'r' .. text(today.month)
for _, row in ipairs(rows) do
  local layer, day, requests, tokens = row[1], int(row[2]), int(row[3]), int(row[4])
  local once = text(day) .. ' ' .. layer
  if month_of(day) == today.month and not get(seen, once) then
    put(seen, once, '1')
    local fields = {}
    for _, code in ipairs(BUDGETS) do
      if kind_of[code] == 'm' or day == today.day then fields[#fields + 1] = code .. layer end
    end
    prefetch(fields, 1, today)
    for _, field in ipairs(fields) do add(field, is_tokens[field] and tokens or requests, today) end
    audit('restored', '', tokens, fields, 1, nil, today)
    count = count + 1
  end
end
return commit(count)
