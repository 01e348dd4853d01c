// FACETRAIN_CLONES before a function with loops: the compiler makes it for several instruction sets, and the loader
// picks. Results are the same in all of them: -ffp-contract=off forbids the compiler to fuse a * b + c.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FACETRAIN_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define FACETRAIN_CLONES
#endif
