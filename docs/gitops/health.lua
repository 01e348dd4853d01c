-- Health of a FaceTrainJob or a QuantizeJob for Argo CD, from the conditions that kstatus (Flux, helm --wait) also
-- reads. A training that runs is Healthy: it takes days, and a sync should not wait for its end. Argo CD gives the
-- object as `obj`, and loads only Lua's base and table libraries.
local status = obj.status or {}
if status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not looked at this version of it yet"}
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    conditions[condition.type] = condition.reason .. ": " .. condition.message
  end
end

if conditions.Stalled then
  return {status = "Degraded", message = conditions.Stalled}
end
if conditions.Reconciling then
  return {status = "Progressing", message = conditions.Reconciling}
end
if conditions.Suspended then
  return {status = "Suspended", message = conditions.Suspended}
end
if conditions.Ready then
  local progress = status.progress or {}
  if status.phase == "Running" and progress.step then
    return {status = "Healthy", message = "Running: step " .. progress.step .. " of " .. progress.totalSteps}
  end
  return {status = "Healthy", message = conditions.Ready}
end
return {status = "Progressing", message = "neither ready nor stalled"}
