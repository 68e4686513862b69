-- wrk ... -s post.lua URL -- BODY NAME=VALUE...: posts a file with headers, and ends with a line of JSON.

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
  for i = 2, #args do
    local name, value = args[i]:match("^([^=]+)=(.*)$")
    wrk.headers[name] = value
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  local line = '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "statuses": %d, "sockets": %d, "timeouts": %d}\n'
  io.write(line:format(summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.status, e.connect + e.read + e.write, e.timeout))
end
