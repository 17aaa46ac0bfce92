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

    // Calls body(its place in the output's plane, its place in the tile, floats) for each line of pixels that an output's
    // results `tile` hold.
    template <typename Body>
    void lines(const Tile& tile, Body body) const {
        const int64_t end = tile.begin + tile.samples;
        for (int64_t row = tile.begin / line(); row * line() < end; row++) {
            const int64_t from = std::max(tile.begin, row * line()), to = std::min(end, row * line() + out_width);
            if (from < to) body(row * out_width + from - row * line(), from - tile.begin, to - from);
        }
    }

    // Puts the pixels of `sums`, which are results `tile`, into an output's plane.
    void crop(const Tile& tile, const float* sums, float* out) const {
        lines(tile, [&](int64_t pixel, int64_t place, int64_t floats) {
            std::memcpy(out + pixel, sums + place, floats * sizeof(float));
        });
    }

    // The other way: the results `tile` of an output's plane, zero where they are no pixels.
    void spread(const Tile& tile, const float* out, float* to) const {
        std::memset(to, 0, tile.width() * sizeof(float));
        lines(tile, [&](int64_t pixel, int64_t place, int64_t floats) {
            std::memcpy(to + place, out + pixel, floats * sizeof(float));
        });
    }
};

// As work_of: entries meet all pixels of all images.
int64_t conv_work(const Images& at, int64_t entries) { return entries * std::min<int64_t>(at.images * at.pixels(), 64) / 8; }

// Calls body(n, row, tile, number of the plane in y, image from the tile's begin on, is it the first of its rows?), n the
// tile's vectors, for every row, tile and image. Threads share the rows where `rows_apart`, else whole images while there
// are enough of them. Returns 1 without memory.
template <typename Body>
int32_t over_images(const Images& at, const int32_t* starts, int64_t rows, const float* x, bool rows_apart, int32_t threads,
                    Body body) {
    const int64_t tiles = tiles_of(at.pixels());
    std::atomic<int32_t> failed{0};
    Team::run(threads_for(conv_work(at, starts[rows]), threads), [&](Team& team, int member) {
        const int64_t members = team.size();
        const bool enough = at.images >= 2 * members || at.images % members == 0;
        const int64_t shares = enough && !rows_apart ? 1 : members;
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
                    for (int64_t r = first; r < last; r++)
                        body(n, r, tile, number * rows + r, image + tile.begin, number + t == 0);
                });
            }
        }
    });
    return failed;
}

}  // namespace
}  // namespace st

// y [images, rows, out_height, out_width] = the sum over a row's entries, from starts[i] to starts[i + 1], of values[j]
// times the image `x` with its border, offsets[j] floats on; plus bias. `sizes` is Images. Returns 1 without memory.
ST_API int32_t st_conv(const int32_t* starts, const int32_t* offsets, const float* values, int64_t rows, const float* x,
                       const int64_t* sizes, const float* bias, float* y, int32_t threads) {
    using namespace st;
    Images at;
    std::memcpy(&at, sizes, sizeof(at));
    const auto body = [&](auto n, int64_t r, const Tile& tile, int64_t plane, const float* image, bool) {
        constexpr int N = decltype(n)::value;
        float sums[N * LANES];
        for (int v = 0; v < N; v++) store_floats(sums + v * LANES, all_of(bias != nullptr ? bias[r] : 0.0f));
        add_row<N, 1>(offsets, values, starts[r], starts[r + 1], starts[rows] - 1, image, sums);
        at.crop(tile, sums, y + plane * at.out_height * at.out_width);
    };
    return over_images(at, starts, rows, x, false, threads, body);
}

// gradient[j] = the sum over images and pixels of dy at j's row times the image, offsets[j] floats on; see st_conv. Each
// thread has rows of its own, so their number changes no bit. Returns 1 without memory.
ST_API int32_t st_conv_gradient(const int32_t* starts, const int32_t* offsets, int64_t rows, const float* x,
                                const float* dy, const int64_t* sizes, float* gradient, int32_t threads) {
    using namespace st;
    Images at;
    std::memcpy(&at, sizes, sizeof(at));
    const auto body = [&](auto n, int64_t r, const Tile& tile, int64_t plane, const float* image, bool begins) {
        constexpr int N = decltype(n)::value;
        float given[N * LANES];
        at.spread(tile, dy + plane * at.out_height * at.out_width, given);
        dot_row<N, 1>(offsets, starts[r], starts[r + 1], image, given, !begins, gradient);
    };
    return over_images(at, starts, rows, x, true, threads, body);
}
