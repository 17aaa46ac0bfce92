// An ascending sparse list added to a dense tensor where it lies.

#include "common.h"

namespace st {
namespace {

// Entries whose cache lines are under way: their distances vary too much for the processor to guess.
constexpr int64_t AHEAD = 96;

void scatter_add(const int32_t* indices, const float* values, int64_t begin, int64_t end, float* out, float scale) {
    for (int64_t i = begin; i < end; i++) {
        if (i + AHEAD < end) __builtin_prefetch(out + indices[i + AHEAD], 1);
        const float term = values[i] * scale;
        out[indices[i]] += term;
    }
}

}  // namespace
}  // namespace st

// Adds scale * value at index; the caller has checked that the indices are ascending and inside `out`.
ST_API void st_scatter_add(const int32_t* indices, const float* values, int64_t count, float* out, float scale,
                           int32_t threads) {
    using namespace st;
    Team::run(threads_for(count, threads), [&](Team& team, int member) {
        scatter_add(indices, values, team.begin(count, member), team.begin(count, member + 1), out, scale);
    });
}
