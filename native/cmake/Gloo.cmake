# Defines FACETRAIN_GLOO if this machine has Gloo's headers, which ProcessGroupGloo.hpp includes (comm/gloo.cc). Without
# them the build has no collectives between ranks on CPUs: one rank, and ranks over NCCL, need none.
set(FACETRAIN_GLOO AUTO CACHE STRING "Collectives on CPUs: AUTO (if Gloo's headers are found), ON (or fail), OFF")
set_property(CACHE FACETRAIN_GLOO PROPERTY STRINGS AUTO ON OFF)
if(NOT FACETRAIN_GLOO STREQUAL "OFF")
  find_path(GLOO_HEADERS gloo/rendezvous/store.h NO_CACHE)
endif()
if(GLOO_HEADERS)
  target_compile_definitions(torch INTERFACE FACETRAIN_GLOO USE_C10D_GLOO)
elseif(FACETRAIN_GLOO STREQUAL "ON")
  message(FATAL_ERROR "FACETRAIN_GLOO is ON, but gloo/rendezvous/store.h was not found")
else()
  message(STATUS "Gloo: not built; gloo/rendezvous/store.h was not found")
endif()
