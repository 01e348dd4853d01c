# Adds CUDA to the build if it is found: NCCL and CUDA's runtime to the target `torch`, and the language CUDA for
# kernels (*.cu). Otherwise the build is for CPUs only. Code can ask for FACETRAIN_CUDA; FACETRAIN_NCCL is defined with
# it.
#
# `npm run setup -- --cuda` installs compiler, headers and libraries from PyPI wheels into LIBTORCH_ROOT/nvidia, of the
# CUDA version that libtorch was built with. What is not there is searched for in a toolkit (CUDA_HOME,
# /usr/local/cuda): LIBTORCH_ROOT may be the site-packages of any Python with torch. CUDA 13.0 and 13.2 are tried.
set(FACETRAIN_CUDA AUTO CACHE STRING "Build kernels and collectives for CUDA: AUTO (if it is found), ON (or fail), OFF")
set_property(CACHE FACETRAIN_CUDA PROPERTY STRINGS AUTO ON OFF)
if(FACETRAIN_CUDA STREQUAL "OFF")
  return()
endif()

file(GLOB _wheel_roots ${LIBTORCH_ROOT}/nvidia/*)
set(_toolkits $ENV{CUDA_HOME} /usr/local/cuda)
set(_missing)
find_library(TORCH_CUDA torch_cuda PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE)
find_library(TORCH_C10_CUDA c10_cuda PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE)
# A wheel has the library by its versioned name alone. The one that libtorch loads comes first, not that of a toolkit.
find_library(CUDA_RUNTIME NAMES cudart libcudart.so.13 libcudart.so.12 NAMES_PER_DIR PATHS ${_wheel_roots} ${_toolkits}
  PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH NO_CACHE)
find_program(CUDA_NVCC nvcc PATHS ${_wheel_roots} ${_toolkits} PATH_SUFFIXES bin NO_DEFAULT_PATH NO_CACHE)
find_program(CUDA_NVCC nvcc NO_CACHE)
foreach(file TORCH_CUDA TORCH_C10_CUDA CUDA_RUNTIME CUDA_NVCC)
  if(NOT ${file})
    list(APPEND _missing ${file})
  endif()
endforeach()
set(_cuda_includes)
# What ProcessGroupNCCL.hpp and ATen/cuda/CUDAContext.h include.
foreach(header cuda_runtime_api.h crt/host_config.h nv/target cublas_v2.h cusparse.h cusolverDn.h nccl.h)
  string(MAKE_C_IDENTIFIER HEADER_${header} variable)
  find_path(${variable} ${header} PATHS ${_wheel_roots} ${_toolkits}
    PATH_SUFFIXES include include/cccl cccl NO_CACHE)
  if(${variable})
    list(APPEND _cuda_includes ${${variable}})
  else()
    list(APPEND _missing ${header})
  endif()
endforeach()

if(_missing)
  list(JOIN _missing ", " _missing)
  if(FACETRAIN_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA: not built, for CPUs alone; not found: ${_missing}")
    return()
  endif()
  message(FATAL_ERROR
    "CUDA: FACETRAIN_CUDA is ON, but these were not found in a CUDA toolkit or in LIBTORCH_ROOT/nvidia: ${_missing}")
endif()

# Two versions of CUDA's runtime in one program each keep their own list of kernels and devices.
if(EXISTS ${LIBTORCH_ROOT}/torch/version.py)
  file(STRINGS ${LIBTORCH_ROOT}/torch/version.py _torch_cuda REGEX "^cuda")
  string(REGEX MATCH "[0-9]+" _torch_cuda "${_torch_cuda}")
  execute_process(COMMAND ${CUDA_NVCC} --version OUTPUT_VARIABLE _nvcc_version)
  string(REGEX MATCH "release ([0-9]+)" _nvcc_version "${_nvcc_version}")
  if(_torch_cuda AND NOT CMAKE_MATCH_1 EQUAL _torch_cuda)
    message(FATAL_ERROR "CUDA: ${CUDA_NVCC} is of CUDA ${CMAKE_MATCH_1}, but torch in ${LIBTORCH_ROOT} was built with "
      "CUDA ${_torch_cuda}; set CUDA_HOME to a toolkit of that version")
  endif()
endif()

list(REMOVE_DUPLICATES _cuda_includes)
message(STATUS "CUDA: built, with ${TORCH_CUDA} and ${CUDA_NVCC}; headers in ${_cuda_includes}")
target_include_directories(torch SYSTEM INTERFACE ${_cuda_includes})
target_compile_definitions(torch INTERFACE FACETRAIN_CUDA FACETRAIN_NCCL USE_CUDA USE_C10D_NCCL)
# libtorch_cuda.so finds cuDNN, cuBLAS and others by its own search path at load time; the linker does not need them.
target_link_options(torch INTERFACE -Wl,--allow-shlib-undefined)
target_link_libraries(torch INTERFACE ${TORCH_CUDA} ${TORCH_C10_CUDA} ${CUDA_RUNTIME})

# A100 and H100 (machine code), and any later GPU (PTX, which its driver compiles).
set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
# The target `torch` links the shared runtime, which libtorch uses.
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(CMAKE_CUDA_COMPILER ${CUDA_NVCC})
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
# CMake links a test program. nvcc looks for the runtime in lib64, which wheels call lib.
get_filename_component(_nvcc_folder ${CUDA_NVCC} DIRECTORY)
set(ENV{LIBRARY_PATH} "${_nvcc_folder}/../lib:$ENV{LIBRARY_PATH}")
enable_language(CUDA)
# CMake 3.25 does not know how nvcc is told to use C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
# Kernels may contract a * b + c, unlike code for CPUs: their sums are in another order anyway. What must be the same on
# both, such as the sample of classes, is computed with integers. -lineinfo: profilers and compute-sanitizer name lines.
# --expt-relaxed-constexpr: headers of libtorch call constexpr functions in kernels.
set(FACETRAIN_CUDA_OPTIONS -lineinfo --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-ffp-contract=off)
