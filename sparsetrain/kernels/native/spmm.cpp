// y = x W^T + b, where W has only some places: each meets the whole vectors of a tile of the batch.

#include "entries.h"

namespace st {
namespace {

constexpr int64_t ROWS = 64;  // results that are turned at a time: whole cache lines of each sample

// The same for TOGETHER rows that have the same columns: each vector of the tile that is loaded meets a weight of each.
template <int N>
__attribute__((noinline)) void add_rows(const int32_t* columns, const float* const values[TOGETHER], int64_t count,
                                        const float* tile, float* out) {
    constexpr int64_t WIDE = N * LANES;
    constexpr int MOST = LANES == 16 ? 4 : 3;  // vectors at a time: with more, sums would not stay in registers
    auto some = [&](int64_t first, auto vectors) {
        constexpr int M = decltype(vectors)::value;
        Floats sum[TOGETHER][M];
        for (int i = 0; i < TOGETHER; i++)
            for (int v = 0; v < M; v++) sum[i][v] = load_floats(out + i * WIDE + (first + v) * LANES);
        for (int64_t j = 0; j < count; j++) {
            const float* from = tile + columns[j] * WIDE + first * LANES;
            Floats x[M];
            for (int v = 0; v < M; v++) x[v] = load_floats(from + v * LANES);
            for (int i = 0; i < TOGETHER; i++) {
                const Floats value = all_of(values[i][j]);
                for (int v = 0; v < M; v++) sum[i][v] = multiply_add(value, x[v], sum[i][v]);
            }
        }
        for (int i = 0; i < TOGETHER; i++)
            for (int v = 0; v < M; v++) store_floats(out + i * WIDE + (first + v) * LANES, sum[i][v]);
    };
    int64_t first = 0;
    for (; first + MOST <= N; first += MOST) some(first, std::integral_constant<int, MOST>{});
    constexpr int LEFT = N % MOST;
    if constexpr (LEFT > 0) some(first, std::integral_constant<int, LEFT>{});
}

struct Product {
    const int32_t *starts, *columns, *segments;
    const float* values;
    int64_t rows, width;
    const float *x, *bias;
    float* y;
    bool together;  // rows are whole groups of TOGETHER, each with the same columns

    // Floats of scratch that one thread needs.
    int64_t scratch() const { return TILE_BYTES / 4 + std::max(rows, ROWS) * MOST_VECTORS * LANES; }

    template <int N>
    void begin_rows(int64_t first, int64_t last, float* sums) const {
        for (int64_t r = first; r < last; r++)
            for (int v = 0; v < N; v++)
                store_floats(sums + (r - first) * N * LANES + v * LANES, all_of(bias != nullptr ? bias[r] : 0.0f));
    }

    template <int N>
    void end_rows(const Tile& tile, int64_t first, int64_t last, const float* sums) const {
        turn_all(sums, N * LANES, last - first, tile.samples, y + tile.begin * rows + first, rows);
    }

    // The entries of rows first..last-1 from `begins` to `ends`.
    template <int N>
    void add(const int32_t* begins, const int32_t* ends, int64_t first, int64_t last, const float* tile,
             float* sums) const {
        if (!together) {
            for (int64_t i = first; i < last; i++)
                add_row<N, N * LANES>(columns, values, begins[i], ends[i], starts[rows] - 1, tile, sums + (i - first) * N * LANES);
            return;
        }
        for (int64_t i = first; i < last; i += TOGETHER) {
            const float* own[TOGETHER];
            for (int k = 0; k < TOGETHER; k++) own[k] = values + begins[i + k];
            add_rows<N>(columns + begins[i], own, ends[i] - begins[i], tile, sums + (i - first) * N * LANES);
        }
    }

    // The rows first..last-1 of a tile.
    template <int N>
    void run(const Tile& tile, int64_t first, int64_t last, float* memory) const {
        float* sums = memory + TILE_BYTES / 4;
        if (width <= COLUMNS<N>) {
            turn_in(tile, x, width, 0, width, memory);
            for (int64_t r = first; r < last; r += ROWS) {
                const int64_t until = std::min(r + ROWS, last);
                begin_rows<N>(r, until, sums);
                add<N>(starts, starts + 1, r, until, memory, sums);
                end_rows<N>(tile, r, until, sums);
            }
            return;
        }
        begin_rows<N>(first, last, sums);
        const int64_t each = COLUMNS<N> / SEGMENT, count = (width + SEGMENT - 1) / SEGMENT;
        for (int64_t s = 0; s < count; s += each) {
            const int64_t behind = std::min(s + each, count), from = s * SEGMENT;
            turn_in(tile, x, width, from, std::min(width, behind * SEGMENT) - from, memory);
            add<N>(segments + s * rows, segments + behind * rows, first, last, memory - from * N * LANES, sums);
        }
        for (int64_t r = first; r < last; r += ROWS)
            end_rows<N>(tile, r, std::min(r + ROWS, last), sums + (r - first) * N * LANES);
    }
};

}  // namespace
}  // namespace st

// y [batch, rows] = x [batch, width] W^T + bias; W's row i has `values` at ascending `columns` from starts[i] to
// starts[i + 1], and enters columns s * 512 and behind at segments[s * rows + i]. With `together` rows come in
// fours that have the same columns. Returns 1 without memory.
ST_API int32_t st_spmm(const int32_t* starts, const int32_t* columns, const int32_t* segments, const float* values,
                       int64_t rows, int64_t width, const float* x, int64_t batch, const float* bias, float* y,
                       int32_t together, int32_t threads) {
    using namespace st;
    const Product product{starts, columns, segments, values, rows, width, x, bias, y, together != 0};
    const int64_t tiles = tiles_of(batch);
    const int wanted = threads_for(work_of(starts, rows, width, batch), threads);
    std::atomic<int32_t> failed{0};
    Team::run(wanted, [&](Team& team, int member) {
        // Whole tiles for each thread where there are enough of them, else parts of the rows.
        const int64_t members = team.size(), shares = tiles >= 2 * members || tiles % members == 0 ? 1 : members;
        const int64_t extra = 4;
        thread_local Scratch scratch;
        auto* memory = reinterpret_cast<float*>(scratch.get(product.scratch() * sizeof(float)));
        if (memory == nullptr) {
            failed = 1;
            return;
        }
        for (int64_t piece = member; piece < tiles * shares; piece += members) {
            const Tile tile = tile_at(piece / shares, batch);
            const int64_t share = piece % shares;
            const int64_t first = part_of_rows(starts, rows, extra, share, shares);
            const int64_t last = part_of_rows(starts, rows, extra, share + 1, shares);
            with_vectors(tile.vectors, [&](auto n) { product.run<decltype(n)::value>(tile, first, last, memory); });
        }
    });
    return failed;
}
