-- What a request is counted in, as quota/encoding.py tells it: {layer, limit of each dimension in turn, ...}.
local STRIDE = NUM + 1

-- A limit as a request's layers tell it: -1 for none; one that refuses nothing (shadow) comes as -2 - limit.
local function limit_of(coded)
  return coded < -1 and -2 - coded or coded
end

-- Budgets are counted without a limit too.
local function is_counted(coded, j)
  return coded ~= -1 or PERIOD_AT[KINDS[j]] ~= nil
end

local function parsed(json)
  local list = cjson.decode(json)
  for i = 1, #list, STRIDE do
    if type(list[i]) ~= 'string' then error('not a layer: ' .. tostring(list[i])) end
    for j = i + 1, i + NUM do
      local n = list[j] -- int(), at a third of its price
      if n % 1 ~= 0 or n > EXACT or n < -EXACT then error('not an exact integer: ' .. tostring(n)) end
    end
  end
  return list
end

-- Most requests come with layers that others came with just before. Nobody changes what this answers.
local MOST_KNOWN, layers_by_text, num_known = 1000, {}, 0

local function layers_of(json)
  local list = layers_by_text[json]
  if not list then
    list = parsed(json)
    if num_known == MOST_KNOWN then layers_by_text, num_known = {}, 0 end
    layers_by_text[json], num_known = list, num_known + 1
  end
  return list
end

-- For audit(): what a request's layers count, as {layer, dimension, limit or -1, ...}.
local function asked_in(list)
  local counters = {}
  for i = 1, #list, STRIDE do
    for j = 1, NUM do
      if is_counted(list[i + j], j) then
        counters[#counters + 1], counters[#counters + 2], counters[#counters + 3] = list[i], j, list[i + j]
      end
    end
  end
  return counters
end
