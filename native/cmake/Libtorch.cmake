# Imports libtorch from an unpacked wheel (LIBTORCH_ROOT holds torch/lib and torch/include) as the target `torch`.
# find_package(Torch) is not used: it mixes a system libtorch into the wheel's and refuses CUDA wheels without a toolkit.
set(LIBTORCH_ROOT "" CACHE PATH "Folder that holds torch/lib and torch/include")
if(NOT LIBTORCH_ROOT)
  message(FATAL_ERROR "LIBTORCH_ROOT is not set; `npm run build` sets it, or pass -DLIBTORCH_ROOT=<site-packages>")
endif()
set(_torch_lib ${LIBTORCH_ROOT}/torch/lib)
set(_torch_include ${LIBTORCH_ROOT}/torch/include)
# Not cached, here and in Nccl.cmake: a build folder may be given another LIBTORCH_ROOT.
find_library(TORCH_CPU torch_cpu PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE REQUIRED)
find_library(TORCH_C10 c10 PATHS ${_torch_lib} NO_DEFAULT_PATH NO_CACHE REQUIRED)

add_library(torch INTERFACE)
target_include_directories(torch SYSTEM INTERFACE ${_torch_include} ${_torch_include}/torch/csrc/api/include)
target_compile_definitions(torch INTERFACE USE_DISTRIBUTED USE_C10D_GLOO)
target_compile_features(torch INTERFACE cxx_std_20)
# The wheel's own search path finds libcupti and libcudart beside it; --no-as-needed keeps libtorch_cpu, which registers operators.
target_link_options(torch INTERFACE -Wl,--no-as-needed -Wl,-rpath,${_torch_lib} -Wl,-rpath-link,${_torch_lib} -Wl,-rpath-link,${LIBTORCH_ROOT}/nvidia/cu13/lib -Wl,-rpath-link,${LIBTORCH_ROOT}/nvidia/cuda_cupti/lib)
target_link_libraries(torch INTERFACE ${TORCH_CPU} ${TORCH_C10})
