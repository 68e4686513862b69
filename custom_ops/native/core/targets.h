// Loops are compiled once for every kind of processor and chosen when the library is loaded.
//
// POOL_TARGETS stands before a plain function; everything that it calls and that is POOL_INLINE becomes part of it, and
// so is compiled for the same processors. Nothing needs flags for one processor, so nothing else can be spoilt by them.
#pragma once

#define POOL_INLINE inline __attribute__((always_inline))

#if defined(POOL_ONE_TARGET) || !defined(__x86_64__) || !defined(__GLIBC__) && !__has_include(<gnu/libc-version.h>)
#define POOL_TARGETS
#elif defined(__clang__) && __clang_major__ < 17
#define POOL_TARGETS
#else
#define POOL_TARGETS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

// Four functions name(const Job<T>&, first, last), one for each element type, from one template name_of.
#define POOL_FOR_EACH_ELEMENT(name, Job)                                                                      \
  POOL_TARGETS void name(const Job<float>& job, size_t first, size_t last) { name##_of(job, first, last); }   \
  POOL_TARGETS void name(const Job<double>& job, size_t first, size_t last) { name##_of(job, first, last); }  \
  POOL_TARGETS void name(const Job<Half>& job, size_t first, size_t last) { name##_of(job, first, last); }    \
  POOL_TARGETS void name(const Job<Bfloat>& job, size_t first, size_t last) { name##_of(job, first, last); }
