# libfacetrain_int7, shared and static: the INT7 runtime behind a C header (int7/facetrain_int7.h). It needs libstdc++
# and threads. `cmake --install DIR --component int7` installs it with header and pkg-config file.
include(GNUInstallDirs)
foreach(kind SHARED STATIC)
  string(TOLOWER facetrain_int7_${kind} target)
  add_library(${target} ${kind} $<TARGET_OBJECTS:ft_int7> $<TARGET_OBJECTS:ft_nodes>
    $<TARGET_OBJECTS:ft_kernels>)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME facetrain_int7 LINKER_LANGUAGE CXX
    PUBLIC_HEADER int7/facetrain_int7.h)
  target_include_directories(${target} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/int7)
  target_link_libraries(${target} PUBLIC Threads::Threads)
endforeach()
set_target_properties(facetrain_int7_shared PROPERTIES SOVERSION 3
  LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/int7/exports.map)
# The linker leaves out what the library does not call, such as the kernels of the simulator.
foreach(library ft_kernels ft_nodes ft_int7)
  target_compile_options(${library} PRIVATE -ffunction-sections)
endforeach()
target_link_options(facetrain_int7_shared PRIVATE
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/int7/exports.map -Wl,--gc-sections -Wl,-s)
# Relative, since `cmake --install --prefix` may choose another prefix than the one that is known here.
file(RELATIVE_PATH INT7_PREFIX_FROM_PC ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(int7/facetrain_int7.pc.in facetrain_int7.pc @ONLY)
install(TARGETS facetrain_int7_shared facetrain_int7_static COMPONENT int7
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT int7 ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT int7
  PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT int7)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/facetrain_int7.pc COMPONENT int7
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# The example, in C. Tests of the addon run it.
add_executable(int7_embed int7/example/embed.c)
target_link_libraries(int7_embed PRIVATE facetrain_int7_shared)

# The C library by itself: c_api_test calls the shared library, and a program that is linked statically. What the test
# compares with is not exported, so it is linked from the archives behind the library.
set(kinds shared static)
if(FACETRAIN_SANITIZE)  # which no program has that is linked statically
  set(kinds shared)
endif()
foreach(kind ${kinds})
  add_executable(c_api_${kind}_test int7/c_api_test.cc)
  target_link_libraries(c_api_${kind}_test PRIVATE facetrain_int7_${kind} ft_int7 ft_nodes ft_kernels)
  add_test(NAME c_api_${kind}_test COMMAND c_api_${kind}_test)
endforeach()
if(TARGET c_api_static_test)
  target_link_options(c_api_static_test PRIVATE -static)
endif()
add_test(NAME facetrain_int7_needs COMMAND ${CMAKE_COMMAND} -DOBJDUMP=${CMAKE_OBJDUMP}
  -DLIBRARY=$<TARGET_FILE:facetrain_int7_shared> -P ${CMAKE_CURRENT_LIST_DIR}/CheckInt7Library.cmake)

# The emulator's own processor has all that ARM has; a Cortex-A53 is ARMv8.0 and nothing more.
if(CMAKE_CROSSCOMPILING AND CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
  add_test(NAME int7_test_armv8.0
    COMMAND ${CMAKE_CROSSCOMPILING_EMULATOR} -cpu cortex-a53 $<TARGET_FILE:int7_test> few)
  set_tests_properties(int7_test PROPERTIES ENVIRONMENT "FACETRAIN_ISAS=portable neon neondot")
  set_tests_properties(int7_test_armv8.0 PROPERTIES ENVIRONMENT "FACETRAIN_ISAS=portable neon")
endif()

# The library with sanitizers: its tests through the header, the example in C, and its reader on damaged files. An
# emulator of another processor does not run them.
file(GLOB int7_sources CONFIGURE_DEPENDS kernels/*.cc nodes/*.cc int7/*.cc)
list(FILTER int7_sources EXCLUDE REGEX "_test\\.cc$")
if(NOT CMAKE_CROSSCOMPILING AND NOT FACETRAIN_SANITIZE)
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  add_library(int7_sanitized STATIC ${int7_sources})
  target_compile_options(int7_sanitized PUBLIC ${sanitizers})
  target_link_options(int7_sanitized PUBLIC ${sanitizers})
  target_link_libraries(int7_sanitized PUBLIC Threads::Threads)
  set_target_properties(int7_sanitized PROPERTIES EXPORT_COMPILE_COMMANDS OFF)  # clang-tidy has seen these files
  add_executable(onnx_reader_sanitized int7/onnx_reader_test.cc)
  add_executable(c_api_sanitized int7/c_api_test.cc)
  add_executable(int7_embed_sanitized int7/example/embed.c)
  target_include_directories(int7_embed_sanitized PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/int7)
  foreach(program onnx_reader_sanitized c_api_sanitized int7_embed_sanitized)
    target_link_libraries(${program} PRIVATE int7_sanitized)
    set_target_properties(${program} PROPERTIES EXPORT_COMPILE_COMMANDS OFF)
  endforeach()
  set_target_properties(int7_embed_sanitized PROPERTIES LINKER_LANGUAGE CXX)
  add_test(NAME onnx_reader_sanitized COMMAND onnx_reader_sanitized)
  add_test(NAME c_api_sanitized COMMAND c_api_sanitized $<TARGET_FILE:int7_embed_sanitized>)
endif()

# The fuzzer of files, which needs Clang (`npm run fuzz`). All it calls is compiled for it again, with its sanitizers.
if(FACETRAIN_FUZZ)
  list(FILTER int7_sources EXCLUDE REGEX "/c_api\\.cc$")
  add_executable(model_fuzz EXCLUDE_FROM_ALL int7/testing/model_fuzz.cc ${int7_sources})
  set(sanitizers -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)
  target_compile_options(model_fuzz PRIVATE ${sanitizers} -g -O1)
  target_link_options(model_fuzz PRIVATE ${sanitizers})
  target_link_libraries(model_fuzz PRIVATE Threads::Threads)
endif()
