-- The calendar periods (UTC) of budgets.
local PERIOD_AT = { d = 1, m = 2 } -- in a record of counters (counters.lua)

local function month_of(day) -- months since 1970-01 (Hinnant, "chrono-compatible low-level date algorithms")
  local z = day + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local mp = floor((5 * (doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))) + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0) - 1970) * 12 + month - 1
end

-- The periods in which a request admitted then is counted: d(ay), m(onth), and which ended so long ago that nothing
-- corrects them.
local function periods_at(ms)
  local day = floor(ms / DAY)
  local month, last = month_of(day), floor((now - GRACE) / DAY)
  return { d = day, m = month, over = { d = day < last, m = day < last and month < month_of(last) } }
end
