// Convolutions with single weights, step 1: no matrix of patches. An image with its border of zeros lies in memory once,
// and an output's weight takes the whole image in, shifted by its place: pixels are the vectors that it meets.

#include "entries.h"

namespace st {
namespace {

struct Images {
    int64_t images, channels, height, width, border_rows, border_columns, out_height, out_width;

    int64_t line() const { return width + 2 * border_columns; }
    int64_t plane() const { return (height + 2 * border_rows) * line(); }
    // Results of an output's plane in the lines of the input, from its first pixel to its last: some are no pixels.
    int64_t pixels() const { return (out_height - 1) * line() + out_width; }
    int64_t floats() const { return channels * plane() + MOST_VECTORS * LANES; }  // a tile may reach behind the last

    // Lays an image out with its border.
    void lay(const float* image, float* to) const {
        if (border_rows == 0 && border_columns == 0) {
            std::memcpy(to, image, channels * plane() * sizeof(float));
        } else {
            std::memset(to, 0, channels * plane() * sizeof(float));
            for (int64_t c = 0; c < channels; c++)
                for (int64_t h = 0; h < height; h++)
                    std::memcpy(to + c * plane() + (h + border_rows) * line() + border_columns,
                                image + (c * height + h) * width, width * sizeof(float));
        }
        std::memset(to + channels * plane(), 0, MOST_VECTORS * LANES * sizeof(float));
    }

    // Puts the pixels of `sums`, which are results `tile`, into an output's plane.
    void crop(const Tile& tile, const float* sums, float* out) const {
        const int64_t end = tile.begin + tile.samples;
        for (int64_t row = tile.begin / line(); row * line() < end; row++) {
            const int64_t from = std::max(tile.begin, row * line()), to = std::min(end, row * line() + out_width);
            if (from < to)
                std::memcpy(out + row * out_width + from - row * line(), sums + from - tile.begin,
                            (to - from) * sizeof(float));
        }
    }

    // The other way: the results `tile` of an output's plane, zero where they are no pixels.
    void spread(const Tile& tile, const float* out, float* to) const {
        std::memset(to, 0, tile.width() * sizeof(float));
        const int64_t end = tile.begin + tile.samples;
        for (int64_t row = tile.begin / line(); row * line() < end; row++) {
            const int64_t from = std::max(tile.begin, row * line()), until = std::min(end, row * line() + out_width);
            if (from < until)
                std::memcpy(to + from - tile.begin, out + row * out_width + from - row * line(),
                            (until - from) * sizeof(float));
        }
    }
};

// As work_of: entries meet all pixels of all images.
int64_t conv_work(const Images& at, int64_t entries) { return entries * std::min<int64_t>(at.images * at.pixels(), 64) / 8; }

}  // namespace
}  // namespace st

// y [images, rows, out_height, out_width] = the sum over a row's entries, from starts[i] to starts[i + 1], of values[j]
// times the image `x` with its border, offsets[j] floats on; plus bias. `sizes` is Images. Returns 1 without memory.
ST_API int32_t st_conv(const int32_t* starts, const int32_t* offsets, const float* values, int64_t rows, const float* x,
                       const int64_t* sizes, const float* bias, float* y, int32_t threads) {
    using namespace st;
    Images at;
    std::memcpy(&at, sizes, sizeof(at));
    const int64_t tiles = tiles_of(at.pixels()), out_plane = at.out_height * at.out_width;
    std::atomic<int32_t> failed{0};
    Team::run(threads_for(conv_work(at, starts[rows]), threads), [&](Team& team, int member) {
        // Whole images for each thread where there are enough of them, else parts of the rows.
        const int64_t members = team.size(), shares = at.images >= 2 * members || at.images % members == 0 ? 1 : members;
        thread_local Scratch scratch;
        auto* image = reinterpret_cast<float*>(scratch.get(at.floats() * sizeof(float)));
        if (image == nullptr) {
            failed = 1;
            return;
        }
        for (int64_t piece = member; piece < at.images * shares; piece += members) {
            const int64_t number = piece / shares, share = piece % shares;
            const int64_t first = part_of_rows(starts, rows, 4, share, shares);
            const int64_t last = part_of_rows(starts, rows, 4, share + 1, shares);
            at.lay(x + number * at.channels * at.height * at.width, image);
            for (int64_t t = 0; t < tiles; t++) {
                const Tile tile = tile_at(t, at.pixels());
                with_vectors(tile.vectors, [&](auto n) {
                    constexpr int N = decltype(n)::value;
                    float sums[N * LANES];
                    for (int64_t r = first; r < last; r++) {
                        for (int v = 0; v < N; v++) store_floats(sums + v * LANES, all_of(bias != nullptr ? bias[r] : 0.0f));
                        add_row<N, 1>(offsets, values, starts[r], starts[r + 1], starts[rows] - 1, image + tile.begin, sums);
                        at.crop(tile, sums, y + (number * rows + r) * out_plane);
                    }
                });
            }
        }
    });
    return failed;
}

// gradient[j] = the sum over images and pixels of dy at j's row times the image, offsets[j] floats on; see st_conv. Each
// thread has rows of its own, so their number changes no bit. Returns 1 without memory.
ST_API int32_t st_conv_gradient(const int32_t* starts, const int32_t* offsets, int64_t rows, const float* x,
                                const float* dy, const int64_t* sizes, float* gradient, int32_t threads) {
    using namespace st;
    Images at;
    std::memcpy(&at, sizes, sizeof(at));
    const int64_t tiles = tiles_of(at.pixels()), out_plane = at.out_height * at.out_width;
    std::atomic<int32_t> failed{0};
    Team::run(threads_for(conv_work(at, starts[rows]), threads), [&](Team& team, int member) {
        thread_local Scratch scratch;
        auto* image = reinterpret_cast<float*>(scratch.get(at.floats() * sizeof(float)));
        if (image == nullptr) {
            failed = 1;
            return;
        }
        const int64_t first = part_of_rows(starts, rows, 4, member, team.size());
        const int64_t last = part_of_rows(starts, rows, 4, member + 1, team.size());
        for (int64_t number = 0; number < at.images; number++) {
            at.lay(x + number * at.channels * at.height * at.width, image);
            for (int64_t t = 0; t < tiles; t++) {
                const Tile tile = tile_at(t, at.pixels());
                with_vectors(tile.vectors, [&](auto n) {
                    constexpr int N = decltype(n)::value;
                    float given[N * LANES];
                    for (int64_t r = first; r < last; r++) {
                        at.spread(tile, dy + (number * rows + r) * out_plane, given);
                        dot_row<N, 1>(offsets, starts[r], starts[r + 1], image + tile.begin, given, number + t > 0, gradient);
                    }
                });
            }
        }
    });
    return failed;
}
