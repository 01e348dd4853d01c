// FACETRAIN_CLONES before a function: the compiler makes one version for each instruction set below, and the dynamic
// loader picks one when the program starts. All versions give the same numbers, because -ffp-contract=off forbids the
// compiler to fuse a * b + c into one rounding.
//
// Needs GCC on x86-64. Elsewhere the function is compiled once, for the build's target.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define FACETRAIN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FACETRAIN_CLONES
#endif
