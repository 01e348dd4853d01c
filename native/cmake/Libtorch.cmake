# Imports libtorch from an unpacked wheel (LIBTORCH_ROOT contains torch/lib and torch/include) as the target `torch`.
# find_package(Torch) is not used: it can mix a libtorch of the system with the wheel's, and refuses CUDA wheels on a
# machine without the CUDA toolkit.
set(LIBTORCH_ROOT "" CACHE PATH "Folder that holds torch/lib and torch/include")
if(NOT LIBTORCH_ROOT)
  message(FATAL_ERROR "LIBTORCH_ROOT is not set; `npm run build` sets it, or pass -DLIBTORCH_ROOT=<site-packages>")
endif()
set(_torch_lib ${LIBTORCH_ROOT}/torch/lib)
set(_torch_include ${LIBTORCH_ROOT}/torch/include)
# Results are not cached, here and in Cuda.cmake, because LIBTORCH_ROOT may change for a build folder.
find_library(TORCH_CPU torch_cpu PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE REQUIRED)
find_library(TORCH_C10 c10 PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE REQUIRED)

add_library(torch INTERFACE)
target_include_directories(torch SYSTEM INTERFACE ${_torch_include} ${_torch_include}/torch/csrc/api/include)
target_compile_definitions(torch INTERFACE USE_DISTRIBUTED)
target_compile_features(torch INTERFACE cxx_std_20)
# at::parallel_for is a template that runs on one thread where a source file is compiled without OpenMP. The runtime
# has to be libtorch's own: another copy would have threads of its own.
target_compile_options(torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
file(GLOB _torch_gomp ${_torch_lib}/libgomp*.so*)
# The rpath-links let the linker find libcupti and libcudart, which the wheel loads by its own search path.
# --no-as-needed keeps libtorch_cpu, which registers the operators.
target_link_options(torch INTERFACE -Wl,--no-as-needed -Wl,-rpath,${_torch_lib} -Wl,-rpath-link,${_torch_lib}
  -Wl,-rpath-link,${LIBTORCH_ROOT}/nvidia/cu13/lib -Wl,-rpath-link,${LIBTORCH_ROOT}/nvidia/cuda_cupti/lib)
if(NOT _torch_gomp)
  set(_torch_gomp gomp)  # a libtorch that was built with the system's
endif()
target_link_libraries(torch INTERFACE ${TORCH_CPU} ${TORCH_C10} ${_torch_gomp})
