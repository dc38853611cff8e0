-- Posts bodies out of a file and says what came of it as one line of JSON.
-- ARGUMENTS: the file, and `whole` (the file is the body), or `lines` (each line is one, in turn).
-- With one body wrk builds the request once, so that the client costs next to nothing; therefore
-- `request` exists only if the environment asks for it.
local requests, turn = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  if args[2] == "whole" then
    wrk.body = file:read("*a")
  else
    for line in file:lines() do
      requests[#requests + 1] = wrk.format(nil, nil, nil, line)
      wrk.body = line
    end
  end
  file:close()
end

if os.getenv("BENCH_MANY_BODIES") then
  function request()
    turn = turn % #requests + 1
    return requests[turn]
  end
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.6f,"connect":%d,"read":%d,"write":%d,"status":%d,' ..
    '"timeout":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect, e.read, e.write, e.status,
    e.timeout, latency:percentile(50), latency:percentile(99)))
end
