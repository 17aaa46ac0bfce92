// Ascending sparse lists to a dense sum, a cache-sized window of the output at a time.

#include <algorithm>

#include "common.h"

namespace st {
namespace {

constexpr int64_t WINDOW = 1 << 13;  // elements: 32 KiB, in a first-level cache

struct Source {
    const int32_t* indices;
    const float* values;
    int64_t count;
};

int64_t lower_bound(const Source& source, int64_t place) {
    int64_t begin = 0, end = source.count;
    while (begin < end) {
        const int64_t half = (begin + end) / 2;
        if (source.indices[half] < place)
            begin = half + 1;
        else
            end = half;
    }
    return begin;
}

// Fills a window that begins at `start` of the output, and notes in `at` where each source goes on.
void fill(const Source* sources, int count, float* window, int64_t start, int64_t stop, float scale, int64_t* at) {
    std::memset(window, 0, (stop - start) * sizeof(float));
    for (int which = 0; which < count; which++) {
        const Source source = sources[which];
        int64_t i = at[which];
        for (; i < source.count && source.indices[i] < stop; i++) {
            const float term = source.values[i] * scale;
            window[source.indices[i] - start] += term;
        }
        at[which] = i;
    }
}

void merge(const Source* sources, int count, float* out, int64_t begin, int64_t end, float scale, bool stream,
           int64_t* at) {
    float room[WINDOW];
    for (int which = 0; which < count; which++) at[which] = lower_bound(sources[which], begin);
    for (int64_t start = begin, stop; start < end; start = stop) {
        // Windows begin with a cache line; what comes before the first is stored as usual.
        const int64_t head = stream ? until_line(out + start) : 0;
        stop = std::min(end, start + (head ? head : WINDOW));
        if (head || !stream || (stop - start) % LINE) {
            fill(sources, count, out + start, start, stop, scale, at);
            continue;
        }
        fill(sources, count, room, start, stop, scale, at);
        for (int64_t i = 0; i < stop - start; i += LINE) stream_line(out + start + i, room + i);
    }
    if (stream) stream_end();
}

}  // namespace
}  // namespace st

// Makes out[0..size) the sum over sources of scale * value at index. Returns -2 where there is no memory.
ST_API int32_t st_merge(const int32_t* const* indices, const float* const* values, const int64_t* counts, int32_t sources,
                        float* out, int64_t size, float scale, int32_t threads) {
    using namespace st;
    try {
        std::vector<Source> lists;
        for (int which = 0; which < sources; which++) lists.push_back({indices[which], values[which], counts[which]});
        const int wanted = threads_for(size, threads);
        std::vector<int64_t> at(static_cast<size_t>(wanted) * sources);
        Team::run(wanted, [&](Team& team, int member) {
            merge(lists.data(), sources, out, team.begin(size, member), team.begin(size, member + 1), scale,
                  streams(out, size), at.data() + static_cast<size_t>(member) * sources);
        });
        return 0;
    } catch (const std::bad_alloc&) {
        return -2;
    }
}
