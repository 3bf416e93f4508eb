// A pool of threads for loops of a few microseconds.
//
// The calling thread takes part. Indices are handed out one by one from an atomic counter, so a thread that
// the system takes off its core delays the loop by its own index only. Between loops a worker spins for about
// 50 microseconds, because the next operation of a step follows within that time, then sleeps on a futex.
#pragma once

#include <cstdint>

namespace rhizome {

// Threads that take part in a loop, the caller included; at least 1. Workers start with the first loop.
int num_threads();
void set_num_threads(int count);

using LoopBody = void (*)(const void* context, int64_t index, int thread);

// See parallel_for.
void run_loop(int64_t count, LoopBody body, const void* context);

// Call body(index, thread) for each index in [0, count); returns when all are done.
//
// 0 <= thread < num_threads(), and no two calls of one loop run at once under the same number. Loops of several
// callers take turns, except those that need one thread only: memory per thread is `thread_scratch`, not an
// array by number. A loop inside a body runs in the thread that asks for it. Bodies must not throw.
template <class Body>
void parallel_for(int64_t count, const Body& body) {
    run_loop(
        count,
        [](const void* context, int64_t index, int thread) { (*static_cast<const Body*>(context))(index, thread); },
        &body);
}

// Memory of the calling thread that outlives loops: at least `bytes`, 64-byte aligned, contents undefined.
// A second call with the same slot returns the same memory (or moved, where it had to grow).
constexpr int kScratchSlots = 4;
void* thread_scratch(int slot, int64_t bytes);

}  // namespace rhizome
