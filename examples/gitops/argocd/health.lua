-- What Argo CD shows as the health of a Hook. An agent that is away is no fault of the Hook: it stays Healthy,
-- and the message says so.
local conditions = {}
if obj.status ~= nil then
  for _, condition in ipairs(obj.status.conditions or {}) do
    conditions[condition.type] = condition
  end
end

local ready = conditions["Ready"]
if ready == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "khook has not looked at this Hook yet"}
end
local stalled = conditions["Stalled"]
if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.reason .. ": " .. stalled.message}
end
if ready.status ~= "True" then
  return {status = "Progressing", message = ready.reason .. ": " .. ready.message}
end
if ready.reason == "Suspended" then
  return {status = "Suspended", message = ready.message}
end
local message = obj.status.message or ready.message
local reachable = conditions["AgentReachable"]
if reachable ~= nil and reachable.status == "False" then
  message = "agent not reached: " .. reachable.message
end
return {status = "Healthy", message = message}
