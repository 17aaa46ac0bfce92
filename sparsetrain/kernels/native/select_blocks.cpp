// Exact top-k inside each block of a sum. A block is small enough for a core's cache, so that it is summed in one pass
// over memory and then looked at where it lies; threads share out whole blocks and never wait for each other.

#include <algorithm>
#include <atomic>

#include "fused.h"
#include "rank.h"

namespace st {
namespace {

constexpr int64_t SAMPLES = 1 << 11;     // positions whose magnitudes give the threshold
constexpr int64_t FEWEST = 4 * SAMPLES;  // elements: in shorter blocks all are candidates
constexpr uint32_t COARSE = 1u << 17;    // how far (1/64 of the value) a sampled threshold may lie below its rank

struct Job {
    Sum sum;
    Parts parts;
    int64_t size, k, block;
    int32_t* indices;
    float* values;
};

// One thread's lists, each with room for a block and a vector more.
struct Lists {
    int32_t* places;
    uint32_t* magnitudes;
    uint32_t* room;
};

struct Rank {
    uint32_t magnitude;
    int64_t larger;  // how many are at least one step larger
};

int64_t reaching(const uint32_t* magnitudes, int64_t count, uint32_t limit) {
    uint32_t found = 0;
    for (int64_t i = 0; i < count; i++) found += magnitudes[i] >= limit;
    return found;
}

// Returns the need-th largest of magnitudes, of which all reach `bottom` and fewer than `need` reach `top`; up to a
// step - 1 less than it. For lists that fit into cache, counting vectors again and again is quicker than a histogram.
Rank halved(const uint32_t* magnitudes, int64_t count, int64_t need, uint32_t bottom, uint32_t top, uint32_t step,
            uint32_t* room) {
    int64_t inside = count, larger = 0, removed = 0;
    while (top - bottom > step) {
        const uint32_t middle = bottom + (top - bottom) / 2;
        const int64_t found = removed + reaching(magnitudes, count, middle);
        if (found >= need) {
            bottom = middle;
            inside = found - larger;
        } else {
            top = middle;
            inside -= found - larger;
            larger = found;
        }
        if (2 * inside > count) continue;
        count = keep_inside(magnitudes, count, Band{bottom, top, 0}, room);
        magnitudes = room;
        removed = larger;
    }
    return Rank{bottom, larger};
}

// Returns a magnitude that a little more than k elements should reach.
uint32_t sampled(const float* acc, int64_t size, int64_t k, const Lists& lists) {
    if (size < FEWEST || 2 * k > size) return 0;
    for (int64_t i = 0; i < SAMPLES; i++) lists.magnitudes[i] = magnitude_of(acc[i * size / SAMPLES]);
    const double expected = static_cast<double>(k) * SAMPLES / size;
    // Three standard deviations more, and 8 as in kernels/sampling.py.
    const int64_t need = static_cast<int64_t>(expected + 3.0 * __builtin_sqrt(expected) + 8.0);
    return halved(lists.magnitudes, SAMPLES, std::min(need, SAMPLES), 0, INFINITE, COARSE, lists.room).magnitude;
}

// Lists what reaches `low`; returns how many.
int64_t compact(const float* acc, int64_t size, uint32_t low, const Lists& lists) {
    int32_t* places = lists.places;
    uint32_t* magnitudes = lists.magnitudes;
    int64_t found = 0, i = 0;
#ifdef ST_VECTOR
    for (; i + WIDTH <= size; i += WIDTH) {
        const uint32_t reaches = mask_of(reach(st::magnitudes(load_vector(acc + i)), low));
        // In cache, a branch that is guessed wrong costs more than storing nothing.
        found += store_compressed(places + found, reaches, plus(same(static_cast<uint32_t>(i)), counting()));
    }
#endif
    while (i < size) {
        const int64_t stop = std::min(i + 16, size);
        uint32_t any = 0;
        for (int64_t j = i; j < stop; j++) any += magnitude_of(acc[j]) >= low;
        for (int64_t j = any == 0 ? stop : i; j < stop; j++) {
            places[found] = static_cast<int32_t>(j);
            found += magnitude_of(acc[j]) >= low;
        }
        i = stop;
    }
    for (i = 0; i < found; i++) magnitudes[i] = magnitude_of(acc[places[i]]);
    return found;
}

// Moves the places of what is larger than `kth`, and of the first `ties` that equal it, to the front.
void keep_winners(const Lists& lists, int64_t count, uint32_t kth, int64_t ties) {
    int64_t at = 0, i = 0;
#ifdef ST_VECTOR
    const Vector limit = same(kth);
    for (; i + WIDTH <= count; i += WIDTH) {
        const uint32_t keep = winners(load_vector(lists.magnitudes + i), limit, ties);
        at += store_compressed(lists.places + at, keep, load_vector(lists.places + i));
    }
#endif
    for (; i < count; i++) {
        const bool tie = lists.magnitudes[i] == kth && ties > 0;
        ties -= tie;
        lists.places[at] = lists.places[i];
        at += lists.magnitudes[i] > kth || tie;
    }
}

// Selects inside begin..end; returns whether all there is finite.
bool select_block(const Job& job, int64_t begin, int64_t end, const Lists& lists) {
    const int64_t first = job.k * begin / job.size, share = job.k * end / job.size - first, size = end - begin;
    plain_pass(job.sum, job.parts, begin, end);
    float* acc = job.sum.buffer + begin;
    uint32_t low = share == 0 ? INFINITE : sampled(acc, size, share, lists);
    int64_t count = compact(acc, size, low, lists);
    if (count < share) {  // the sample was unlucky
        low = 0;
        count = compact(acc, size, low, lists);
    }
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::max(largest, lists.magnitudes[i]);
    if (share == 0 || largest >= INFINITE) return largest < INFINITE;
    const Rank kth = halved(lists.magnitudes, count, share, low, largest + 1, 1, lists.room);
    keep_winners(lists, count, kth.magnitude, share - kth.larger);
    for (int64_t i = 0; i < share; i++) {
        const int32_t place = lists.places[i];
        job.indices[first + i] = static_cast<int32_t>(begin) + place;
        job.values[first + i] = acc[place];
        acc[place] = 0.0f;
    }
    return true;
}

int64_t run(const Job& job, int threads) {
    static thread_local Scratch scratch;
    const int64_t blocks = (job.size + job.block - 1) / job.block;
    const int wanted = static_cast<int>(std::min<int64_t>(threads, blocks));
    const size_t each = (std::max(std::min(job.block, job.size), SAMPLES) + 31) / 16 * 16;
    uint8_t* memory = scratch.get(wanted * 3 * each * sizeof(uint32_t));
    if (memory == nullptr) return -2;
    std::atomic<bool> finite{true};
    Team::run(wanted, [&](Team& team, int member) {
        uint32_t* mine = reinterpret_cast<uint32_t*>(memory) + 3 * each * member;
        const Lists lists{reinterpret_cast<int32_t*>(mine), mine + each, mine + 2 * each};
        const int64_t last = blocks * (member + 1) / team.size();
        for (int64_t which = blocks * member / team.size(); which < last; which++) {
            const int64_t begin = which * job.block;
            if (!select_block(job, begin, std::min(begin + job.block, job.size), lists)) finite = false;
        }
    });
    return finite ? job.k : -1;
}

}  // namespace
}  // namespace st

// As st_select, but block by block, of which each gets its share k * end / size - k * begin / size; always k in all.
// `indices` and `values` have place for k.
ST_API int64_t st_select_blocks(const float* old, const float* const* fresh, const int64_t* lengths, int32_t parts,
                                float* buffer, int64_t size, int64_t k, int64_t block, float scale, int32_t scaled,
                                int32_t threads, int32_t* indices, float* values) {
    using namespace st;
    try {
        const Job job{Sum::of(old, buffer, size, scale, scaled), Parts::of(fresh, lengths, parts, buffer, size),
                      size, k, block, indices, values};
        return run(job, threads_for(size, threads));
    } catch (const std::bad_alloc&) {
        return -2;
    }
}
