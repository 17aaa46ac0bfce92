// The gradient of single weights: the product of what a layer gave out and what it took in, at some places only.

#include "entries.h"

namespace st {
namespace {

constexpr int64_t ROWS = 64;  // outputs that are turned at a time

// The same for TOGETHER rows that have the same columns, which begin at `begins`; two columns at a time.
template <int N>
__attribute__((noinline)) void dot_rows(const int32_t* columns, const int32_t* begins, int64_t count,
                                        const float* inputs, const float* outputs, bool adds, float* gradient) {
    constexpr int64_t WIDE = N * LANES;
    static_assert(TOGETHER == 4, "sums of four");
    for (int64_t j = 0; j < count; j += 2) {
        const bool pair = j + 1 < count;
        const float* from[2] = {inputs + columns[j] * WIDE, inputs + columns[pair ? j + 1 : j] * WIDE};
        Floats sum[2][TOGETHER] = {};
        for (int v = 0; v < N; v++) {
            const Floats x[2] = {load_floats(from[0] + v * LANES), load_floats(from[1] + v * LANES)};
            for (int i = 0; i < TOGETHER; i++) {
                const Floats dy = load_floats(outputs + i * WIDE + v * LANES);
                for (int c = 0; c < 2; c++) sum[c][i] = multiply_add(dy, x[c], sum[c][i]);
            }
        }
        for (int c = 0; c < (pair ? 2 : 1); c++) {
            float four[TOGETHER];
            sums_of_four(sum[c], four);
            for (int i = 0; i < TOGETHER; i++) {
                float* to = gradient + begins[i] + j + c;
                *to = adds ? *to + four[i] : four[i];
            }
        }
    }
}

struct Gradient {
    const int32_t *columns, *segments;
    int64_t rows, width;
    const float *x, *dy;
    float* gradient;
    bool together;

    static constexpr int64_t SCRATCH = TILE_BYTES / 4 + ROWS * MOST_VECTORS * LANES;  // floats

    template <int N>
    void run(const Tile& tile, int64_t first, int64_t last, bool adds, float* memory) const {
        float* outputs = memory + TILE_BYTES / 4;
        const int64_t each = COLUMNS<N> / SEGMENT, count = (width + SEGMENT - 1) / SEGMENT;
        for (int64_t s = 0; s < count; s += each) {
            const int64_t behind = std::min(s + each, count), from = s * SEGMENT;
            turn_in(tile, x, width, from, std::min(width, behind * SEGMENT) - from, memory);
            const float* shifted = memory - from * N * LANES;
            for (int64_t r = first; r < last; r += ROWS) {
                const int64_t until = std::min(r + ROWS, last);
                turn_in(tile, dy, rows, r, until - r, outputs);
                const int32_t *begins = segments + s * rows, *ends = segments + behind * rows;
                for (int64_t i = r; i < until; i += together ? TOGETHER : 1) {
                    const float* own = outputs + (i - r) * N * LANES;
                    if (together)
                        dot_rows<N>(columns + begins[i], begins + i, ends[i] - begins[i], shifted, own, adds, gradient);
                    else
                        dot_row<N, N * LANES>(columns, begins[i], ends[i], shifted, own, adds, gradient);
                }
            }
        }
    }
};

}  // namespace
}  // namespace st

// gradient[j] = sum over samples of dy[sample, row of j] * x[sample, columns[j]]; see st_spmm. Each thread has rows of
// its own, so their number changes no bit. Returns 1 without memory.
ST_API int32_t st_sddmm(const int32_t* starts, const int32_t* columns, const int32_t* segments, int64_t rows,
                        int64_t width, const float* x, const float* dy, int64_t batch, float* gradient, int32_t together,
                        int32_t threads) {
    using namespace st;
    const Gradient product{columns, segments, rows, width, x, dy, gradient, together != 0};
    const int wanted = threads_for(work_of(starts, rows, width, batch), threads);
    std::atomic<int32_t> failed{0};
    Team::run(wanted, [&](Team& team, int member) {
        thread_local Scratch scratch;
        auto* memory = reinterpret_cast<float*>(scratch.get(Gradient::SCRATCH * sizeof(float)));
        if (memory == nullptr) {
            failed = 1;
            return;
        }
        const int64_t first = part_of_rows(starts, rows, 4, member, team.size());
        const int64_t last = part_of_rows(starts, rows, 4, member + 1, team.size());
        for (int64_t t = 0; t < tiles_of(batch); t++) {
            const Tile tile = tile_at(t, batch);
            with_vectors(tile.vectors,
                         [&](auto n) { product.run<decltype(n)::value>(tile, first, last, t > 0, memory); });
        }
    });
    return failed;
}
