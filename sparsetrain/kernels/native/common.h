// What the native kernels share: magnitudes as integers, ranges of work for threads, scratch memory.
//
// Everything here follows the machine's byte order being little-endian, which the Python side checks before a build.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#define ST_STREAMS 1
#endif

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifndef ST_PER_THREAD
#define ST_PER_THREAD (1 << 19)  // elements that are worth a thread; tests take fewer
#endif

#ifndef ST_STREAM_FROM
#define ST_STREAM_FROM (1 << 18)  // elements from which on a result leaves no line in cache; tests take fewer
#endif

#define ST_API extern "C" __attribute__((visibility("default")))

namespace st {

constexpr uint32_t MAGNITUDE = 0x7fffffffu;  // all bits but the sign: integers ordered as the magnitudes are
constexpr uint32_t INFINITE = 0x7f800000u;   // not-a-number lies above
constexpr size_t HUGE_PAGE = size_t(1) << 21;

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline uint32_t magnitude_of(float value) { return bits_of(value) & MAGNITUDE; }

template <typename T>
inline T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}

// Fresh memory costs a page fault per 4 KiB; large blocks ask for large pages.
inline void advise_huge(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes < HUGE_PAGE) return;
    uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(HUGE_PAGE - 1);
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

constexpr int64_t LINE = 16;  // elements of a cache line

// Elements from `to` on up to the next cache line.
inline int64_t until_line(const float* to) { return -(reinterpret_cast<uintptr_t>(to) / sizeof(float)) & (LINE - 1); }

// Whether stores of `size` elements to `to` should go past the caches. An ordinary store to a line first reads it from
// memory, which for what is only written is a read too many, and a large result is gone before anybody looks at it.
inline bool streams(const float* to, int64_t size) {
#ifdef ST_STREAMS
    return size >= ST_STREAM_FROM && reinterpret_cast<uintptr_t>(to) % sizeof(float) == 0;
#else
    (void)to;
    return false;
#endif
}

// Stores one cache line past the caches; `to` begins one.
inline void stream_line(float* to, const float* from) {
#ifdef ST_STREAMS
    for (int i = 0; i < LINE; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#else
    std::memcpy(to, from, LINE * sizeof(float));
#endif
}

// Makes streamed lines visible to other threads before what this thread stores next.
inline void stream_end() {
#ifdef ST_STREAMS
    _mm_sfence();
#endif
}

// Memory of one calling thread that grows and is kept, never cleared, so that no step after the first pays for pages.
class Scratch {
  public:
    ~Scratch() { std::free(memory_); }
    // Returns null when there is no memory.
    uint8_t* get(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;
            void* fresh = nullptr;
            if (posix_memalign(&fresh, HUGE_PAGE, bytes) != 0) fresh = nullptr;
            memory_ = static_cast<uint8_t*>(fresh);
            if (memory_ == nullptr) return nullptr;
            advise_huge(memory_, bytes);
            size_ = bytes;
        }
        return memory_;
    }

  private:
    uint8_t* memory_ = nullptr;
    size_t size_ = 0;
};

// The calls of an OpenMP library that the process has loaded. Its threads wait for the next work of the thread that
// started them, and at first they wait busily: threads of our own would have to share the processors with them.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
    int (*member)() = nullptr;                                               // omp_get_thread_num
    int (*size)() = nullptr;                                                 // omp_get_num_threads
};

inline OpenMP openmp;  // set once, before the first work

// Other threads than the first have no such threads of their own yet, and whoever made them would keep them.
inline bool first_thread() {
#if defined(__linux__)
    return getpid() == syscall(SYS_gettid);
#else
    return false;
#endif
}

// Some threads that run one function together and can wait for each other inside it.
class Team {
  public:
    // Runs body(team, member) for member 0..size-1; member 0 is the caller. Fewer members when threads are scarce.
    template <typename Body>
    static void run(int wanted, Body&& body) {
        Team team;
        if (wanted > 1 && openmp.parallel != nullptr && first_thread()) {
            auto work = [&] {
                const int member = openmp.member();
                if (member == 0) team.open(openmp.size());
                if (member != 0) team.start();
                body(team, member);
            };
            openmp.parallel([](void* call) { (*static_cast<decltype(work)*>(call))(); }, &work, wanted, 0);
            return;
        }
        std::vector<std::thread> others;
        try {
            others.reserve(wanted > 1 ? wanted - 1 : 0);
            for (int member = 1; member < wanted; member++)
                others.emplace_back([&team, &body, member] {
                    team.start();
                    body(team, member);
                });
        } catch (const std::exception&) {
            // The members that exist share the work.
        }
        team.open(static_cast<int>(others.size()) + 1);
        body(team, 0);
        for (auto& other : others) other.join();
    }

    int size() const { return size_; }

    void wait() {
        if (size_ == 1) return;
        std::unique_lock<std::mutex> lock(mutex_);
        const int round = round_;
        if (++arrived_ == size_) {
            arrived_ = 0;
            round_++;
            changed_.notify_all();
        } else {
            changed_.wait(lock, [&] { return round_ != round; });
        }
    }

    // The part of 0..total-1 that a member works on, in whole vectors.
    int64_t begin(int64_t total, int member) const {
        return member == size_ ? total : total / size_ * member & ~int64_t(63);
    }

  private:
    void start() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return size_ != 0; });
    }

    void open(int size) {
        std::lock_guard<std::mutex> lock(mutex_);
        size_ = size;
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    int size_ = 0;
    int arrived_ = 0;
    int round_ = 0;
};

inline int threads_for(int64_t total, int threads) {
    const int64_t useful = total / ST_PER_THREAD;
    return static_cast<int>(useful < 1 ? 1 : useful < threads ? useful : threads);
}

}  // namespace st
