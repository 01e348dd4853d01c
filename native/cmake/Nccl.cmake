# Adds CUDA and NCCL to the target `torch` where they are found; elsewhere the build is for CPUs alone. No compiler for
# CUDA is needed: this is C++ against libtorch_cuda.so.
#
# ProcessGroupNCCL.hpp wants the headers below. They come from PyPI's wheels, unpacked into LIBTORCH_ROOT as pip would
# (nvidia-{cuda-runtime,cuda-crt,cuda-cccl,cublas,cusparse,cusolver} and nvidia-nccl-cu13: `npm run setup -- --cuda`),
# which are of the CUDA that libtorch was built with; what is not there is looked for in a toolkit (CUDA_HOME,
# /usr/local/cuda).
set(FACETRAIN_NCCL AUTO CACHE STRING "Build the NCCL collectives: AUTO (where CUDA is found), ON (or fail), OFF")
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
find_library(CUDA_RUNTIME NAMES cudart libcudart.so.13 libcudart.so.12 PATHS ${_wheel_libs} ${_toolkits} PATH_SUFFIXES lib64 NO_DEFAULT_PATH NO_CACHE)
foreach(library TORCH_CUDA TORCH_C10_CUDA CUDA_RUNTIME)
  if(NOT ${library})
    list(APPEND _missing ${library})
  endif()
endforeach()
set(_cuda_includes)
foreach(header cuda_runtime_api.h crt/host_config.h nv/target cublas_v2.h cusparse.h cusolverDn.h nccl.h)
  string(MAKE_C_IDENTIFIER HEADER_${header} variable)
  find_path(${variable} ${header} PATHS ${_wheel_includes} ${_toolkits} PATH_SUFFIXES include include/cccl cccl NO_CACHE)
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
  # libtorch_cuda.so finds cuDNN, cuBLAS and the rest by its own search path when it is loaded; linking needs none of them.
  target_link_options(torch INTERFACE -Wl,--allow-shlib-undefined)
  target_link_libraries(torch INTERFACE ${TORCH_CUDA} ${TORCH_C10_CUDA} ${CUDA_RUNTIME})
elseif(FACETRAIN_NCCL STREQUAL "AUTO")
  list(JOIN _missing ", " _missing)
  message(STATUS "NCCL: not built, for CPUs alone; not found: ${_missing}")
else()
  list(JOIN _missing ", " _missing)
  message(FATAL_ERROR "NCCL: FACETRAIN_NCCL is ON, but these were not found in a CUDA toolkit or in LIBTORCH_ROOT/nvidia: ${_missing}")
endif()
