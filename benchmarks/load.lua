-- One kind of request for wrk, with another car each time:
--   wrk -s load.lua URL -- METHOD PATH TOKEN ORDER NUMBER [BODY [NEXT]]
-- `{n}` becomes a number, in PATH of at least six digits: a random one from 1 to NUMBER (ORDER "random"), or one that
-- never came before, counted from NUMBER ("growing"). After each such request comes a GET of NEXT, if it is given. The last line of the output is for the program that reads it.

local threads = 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  method, path, order, body, following = args[1], args[2], args[4], args[6], args[7]
  number = tonumber(args[5])
  wrk.headers["Authorization"] = "Bearer " .. args[3]
  if body then wrk.headers["Content-Type"] = "application/json" end
  math.randomseed(id + 1)
  count = number + id
end

local function pick()
  if order == "random" then return math.random(number) end
  count = count + 2 -- two threads count in turns, the odd and the even
  return count
end

local turn = 0

function request()
  turn = turn + 1
  if following and turn % 2 == 0 then return wrk.format("GET", following) end
  local n = pick()
  local mark = string.format("%06d", n)
  return wrk.format(method, (path:gsub("{n}", mark)), nil, body and (body:gsub("{n}", n)))
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50),
    e.status + e.connect + e.read + e.write + e.timeout))
end
