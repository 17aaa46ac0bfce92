// A row of single weights and a range of samples: each entry meets whole vectors of what it multiplies.
#pragma once

#include "tiles.h"

namespace st {

constexpr int64_t AHEAD = 6;  // entries whose vectors are under way: which come next the processor cannot guess

// Adds to `out` [N * LANES] the sum of a row's entries, each a value times the vectors at its place in `tile`, which
// count in STEP floats; `last` is the last entry of all rows.
template <int N, int64_t STEP>
__attribute__((noinline)) void add_row(const int32_t* places, const float* values, int64_t begin, int64_t end,
                                       int64_t last, const float* tile, float* out) {
    constexpr int64_t WIDE = N * LANES;
    // A sum waits for the one before: few vectors need several sums each to keep the processor busy.
    constexpr int SETS = N >= 8 ? 1 : N >= 4 ? 2 : 4;
    Floats sum[SETS][N];
    for (int v = 0; v < N; v++) sum[0][v] = load_floats(out + v * LANES);
    for (int s = 1; s < SETS; s++)
        for (int v = 0; v < N; v++) sum[s][v] = Floats{};
    int64_t j = begin;
    for (; j + SETS <= end; j += SETS)
        for (int s = 0; s < SETS; s++) {
            const float* next = tile + int64_t(places[std::min(j + s + AHEAD, last)]) * STEP;
            for (int64_t line = 0; line < WIDE; line += LINE) __builtin_prefetch(next + line);
            const float* from = tile + int64_t(places[j + s]) * STEP;
            const Floats value = all_of(values[j + s]);
            for (int v = 0; v < N; v++) sum[s][v] = multiply_add(value, load_floats(from + v * LANES), sum[s][v]);
        }
    for (; j < end; j++) {
        const float* from = tile + int64_t(places[j]) * STEP;
        const Floats value = all_of(values[j]);
        for (int v = 0; v < N; v++) sum[0][v] = multiply_add(value, load_floats(from + v * LANES), sum[0][v]);
    }
    for (int v = 0; v < N; v++) {
        Floats total = sum[0][v];
        for (int s = 1; s < SETS; s++) total += sum[s][v];
        store_floats(out + v * LANES, total);
    }
}

// Adds (or stores) for each entry of a row the product of `output` with the vectors at its place, summed over samples.
template <int N, int64_t STEP>
__attribute__((noinline)) void dot_row(const int32_t* places, int64_t begin, int64_t end, const float* inputs,
                                       const float* output, bool adds, float* gradient) {
    Floats given[N];
    for (int v = 0; v < N; v++) given[v] = load_floats(output + v * LANES);
    for (int64_t j = begin; j < end; j += 4) {
        const float* from[4];
        for (int i = 0; i < 4; i++) from[i] = inputs + int64_t(places[j + i < end ? j + i : end - 1]) * STEP;
        Floats sum[4];
        for (int i = 0; i < 4; i++) sum[i] = given[0] * load_floats(from[i]);
        for (int v = 1; v < N; v++)
            for (int i = 0; i < 4; i++) sum[i] = multiply_add(given[v], load_floats(from[i] + v * LANES), sum[i]);
        float four[4];
        sums_of_four(sum, four);
        for (int64_t i = 0; i < 4 && j + i < end; i++) gradient[j + i] = adds ? gradient[j + i] + four[i] : four[i];
    }
}

}  // namespace st
