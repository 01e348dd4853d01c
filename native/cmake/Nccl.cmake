# Adds CUDA and NCCL to the target `torch` if they are found; otherwise the build is for CPUs only. No CUDA compiler is
# needed, because the code is C++ that links libtorch_cuda.so.
#
# ProcessGroupNCCL.hpp includes the headers below. `npm run setup -- --cuda` installs them into LIBTORCH_ROOT from the
# PyPI wheels nvidia-{cuda-runtime,cuda-crt,cuda-cccl,cublas,cusparse,cusolver} and nvidia-nccl-cu13, of the CUDA
# version that libtorch was built with. Headers that are not there are searched for in a toolkit (CUDA_HOME,
# /usr/local/cuda).
set(FACETRAIN_NCCL AUTO CACHE STRING "Build the NCCL collectives: AUTO (if CUDA is found), ON (or fail), OFF")
set_property(CACHE FACETRAIN_NCCL PROPERTY STRINGS AUTO ON OFF)
if(FACETRAIN_NCCL STREQUAL "OFF")
  return()
endif()

file(GLOB _wheel_includes ${LIBTORCH_ROOT}/nvidia/*/include)
file(GLOB _wheel_libs ${LIBTORCH_ROOT}/nvidia/*/lib)
set(_toolkits $ENV{CUDA_HOME} /usr/local/cuda)
set(_missing)
find_library(TORCH_CUDA torch_cuda PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE)
find_library(TORCH_C10_CUDA c10_cuda PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE)
find_library(CUDA_RUNTIME NAMES cudart libcudart.so.13 libcudart.so.12 PATHS ${_wheel_libs} ${_toolkits}
  PATH_SUFFIXES lib64 NO_DEFAULT_PATH NO_CACHE)
foreach(library TORCH_CUDA TORCH_C10_CUDA CUDA_RUNTIME)
  if(NOT ${library})
    list(APPEND _missing ${library})
  endif()
endforeach()
set(_cuda_includes)
foreach(header cuda_runtime_api.h crt/host_config.h nv/target cublas_v2.h cusparse.h cusolverDn.h nccl.h)
  string(MAKE_C_IDENTIFIER HEADER_${header} variable)
  find_path(${variable} ${header} PATHS ${_wheel_includes} ${_toolkits}
    PATH_SUFFIXES include include/cccl cccl NO_CACHE)
  if(${variable})
    list(APPEND _cuda_includes ${${variable}})
  else()
    list(APPEND _missing ${header})
  endif()
endforeach()

if(NOT _missing)
  list(REMOVE_DUPLICATES _cuda_includes)
  message(STATUS "NCCL: built, with ${TORCH_CUDA}; headers in ${_cuda_includes}")
  target_include_directories(torch SYSTEM INTERFACE ${_cuda_includes})
  target_compile_definitions(torch INTERFACE FACETRAIN_NCCL USE_CUDA USE_C10D_NCCL)
  # libtorch_cuda.so finds cuDNN, cuBLAS and others by its own search path at load time; the linker does not need them.
  target_link_options(torch INTERFACE -Wl,--allow-shlib-undefined)
  target_link_libraries(torch INTERFACE ${TORCH_CUDA} ${TORCH_C10_CUDA} ${CUDA_RUNTIME})
elseif(FACETRAIN_NCCL STREQUAL "AUTO")
  list(JOIN _missing ", " _missing)
  message(STATUS "NCCL: not built, for CPUs alone; not found: ${_missing}")
else()
  list(JOIN _missing ", " _missing)
  message(FATAL_ERROR
    "NCCL: FACETRAIN_NCCL is ON, but these were not found in a CUDA toolkit or in LIBTORCH_ROOT/nvidia: ${_missing}")
endif()
