#include "threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>

namespace rhizome {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kSpinNanoseconds = 50'000;
constexpr int kPausesPerLook = 16;

int64_t now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

void futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
    static_assert(sizeof(*word) == sizeof(uint32_t));
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

// One loop at a time is open. `generation` is odd while it is: a worker enters by raising `inside` and then
// looking at `generation` again; the caller leaves by making `generation` even and then waiting for `inside`
// to be 0. Both orders are sequentially consistent, so one of the two always sees the other, and the caller
// never waits for a worker that has not entered, however long that one takes to wake up.
struct Pool {
    alignas(64) std::atomic<uint32_t> generation{0};
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int> inside{0};
    alignas(64) std::atomic<int> sleeping{0};
    std::atomic<int> wanted{1};  // threads, the caller included
    int started = 1;             // under `turn`
    // Of the open loop; read only by a worker that has entered, so written freely while none is open.
    int64_t count = 0;
    int limit = 1;  // threads that may take part
    LoopBody body = nullptr;
    const void* context = nullptr;
    pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
};

Pool pool;
thread_local int current_thread = -1;  // number within the loop that this thread is in

void take_indices(int thread) {
    current_thread = thread;
    for (;;) {
        const int64_t index = pool.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= pool.count) break;
        pool.body(pool.context, index, thread);
    }
    current_thread = -1;
}

uint32_t wait_for_another(uint32_t seen) {
    const int64_t until = now_ns() + kSpinNanoseconds;
    for (;;) {
        for (int pause = 0; pause < kPausesPerLook; ++pause) {
            const uint32_t generation = pool.generation.load(std::memory_order_acquire);
            if (generation != seen) return generation;
            _mm_pause();
        }
        if (now_ns() < until) continue;
        // Announced before the look that futex takes at the word: the caller changes the word first, then
        // looks for sleepers.
        pool.sleeping.fetch_add(1);
        futex(&pool.generation, FUTEX_WAIT, seen);
        pool.sleeping.fetch_sub(1);
        const uint32_t generation = pool.generation.load(std::memory_order_acquire);
        if (generation != seen) return generation;
    }
}

void* work(void* argument) {
    const int thread = static_cast<int>(reinterpret_cast<intptr_t>(argument));
    uint32_t seen = 0;
    for (;;) {
        const uint32_t generation = wait_for_another(seen);
        seen = generation;
        if (generation % 2 == 0) continue;
        pool.inside.fetch_add(1);
        if (pool.generation.load() == generation && thread < pool.limit) take_indices(thread);
        pool.inside.fetch_sub(1);
    }
    return nullptr;
}

void start_workers(int wanted) {
    while (pool.started < wanted) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        const intptr_t number = pool.started;
        const int error = pthread_create(&thread, &attributes, work, reinterpret_cast<void*>(number));
        pthread_attr_destroy(&attributes);
        if (error != 0) return;  // fewer threads take part
        ++pool.started;
    }
}

// A forked child has none of the workers: it starts its own when it needs them. No loop is open meanwhile,
// because the turn is held across the fork.
void before_fork() { pthread_mutex_lock(&pool.turn); }
void after_fork_in_parent() { pthread_mutex_unlock(&pool.turn); }
void after_fork_in_child() {
    pool.started = 1;
    pool.inside = 0;
    pool.sleeping = 0;
    pthread_mutex_init(&pool.turn, nullptr);
}

__attribute__((constructor)) void register_fork_handlers() {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

struct Scratch {
    void* memory[kScratchSlots] = {};
    int64_t bytes[kScratchSlots] = {};
    ~Scratch() {
        for (void* each : memory) free(each);
    }
};

thread_local Scratch scratch;

}  // namespace

int num_threads() { return pool.wanted.load(std::memory_order_relaxed); }

void set_num_threads(int count) {
    if (count < 1) count = 1;
    if (count > kMaxThreads) count = kMaxThreads;
    pool.wanted.store(count, std::memory_order_relaxed);
}

void run_loop(int64_t count, LoopBody body, const void* context) {
    if (count <= 0) return;
    if (current_thread >= 0) {
        for (int64_t index = 0; index < count; ++index) body(context, index, current_thread);
        return;
    }
    const int wanted = num_threads();
    if (wanted == 1 || count == 1) {
        for (int64_t index = 0; index < count; ++index) body(context, index, 0);
        return;
    }
    pthread_mutex_lock(&pool.turn);
    start_workers(wanted);
    pool.body = body;
    pool.context = context;
    pool.count = count;
    pool.limit = wanted;
    pool.next.store(0, std::memory_order_relaxed);
    pool.generation.fetch_add(1);
    if (pool.sleeping.load() != 0) futex(&pool.generation, FUTEX_WAKE, INT_MAX);
    take_indices(0);
    pool.generation.fetch_add(1);
    for (int looks = 0; pool.inside.load() != 0; ++looks) {
        _mm_pause();
        if (looks > 2000) sched_yield();  // its thread may be waiting for this very core
    }
    pthread_mutex_unlock(&pool.turn);
}

void* thread_scratch(int slot, int64_t bytes) {
    if (scratch.bytes[slot] < bytes) {
        free(scratch.memory[slot]);
        const int64_t rounded = (bytes + 4095) / 4096 * 4096;
        scratch.memory[slot] = aligned_alloc(64, rounded);
        if (scratch.memory[slot] == nullptr) {
            fprintf(stderr, "rhizome kernels: no memory for %lld bytes of scratch\n", static_cast<long long>(rounded));
            abort();
        }
        scratch.bytes[slot] = rounded;
    }
    return scratch.memory[slot];
}

}  // namespace rhizome

#define RHIZOME_API extern "C" __attribute__((visibility("default")))

RHIZOME_API void rhizome_set_num_threads(int count) { rhizome::set_num_threads(count); }
RHIZOME_API int rhizome_num_threads() { return rhizome::num_threads(); }
