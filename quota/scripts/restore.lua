-- ARGV: clock, nonce, rows as JSON [["level:name", day, requests, tokens], ...]; 'more' to come before the account is
-- opened with them, or 'open' it: when Redis lost its memory (0: it did not), epoch. Answers how many rows were new, -1
-- if the account is not ours to open, or {'unopened', nonce}.
local rows, opening, today, count = cjson.decode(ARGV[3]), ARGV[4], homes_at(now), 0
if opening then
  if mark ~= 'wait ' .. ARGV[2] then return -1 end -- open already, or this memory is not the one that was asked
  if opening == 'open' then new_mark = 'open ' .. text(int(ARGV[5])) .. ' ' .. ARGV[6] .. ' ' .. text(max(0, now)) end
else
  local closed = unopened()
  if closed then return closed end
end

local seen, names, fields = 'r' .. text(today.month), {}, {}
for i, row in ipairs(rows) do
  names[i] = text(int(row[2])) .. ' ' .. row[1]
  if int(row[3]) < 0 or int(row[4]) < 0 then error('usage below 0') end
  for _, code in ipairs(BUDGETS) do fields[#fields + 1] = code .. row[1] end
end
fetch(seen, names)
prefetch(fields, 1, today)

for i, row in ipairs(rows) do
  local layer, day, requests, tokens = row[1], int(row[2]), int(row[3]), int(row[4])
  if month_of(day) == today.month and not get(seen, names[i]) then
    put(seen, names[i], '1')
    local changed_fields = {}
    for _, code in ipairs(BUDGETS) do
      local field = code .. layer
      if kind_of(code) == 'm' or day == today.day then
        add(field, is_tokens(field) and tokens or requests, today)
        changed_fields[#changed_fields + 1] = field
      end
    end
    audit('restored', '', tokens, changed_fields, 1, nil, today)
    count = count + 1
  end
end
return commit(count)
