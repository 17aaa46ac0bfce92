#include "rank.h"

namespace st {

int64_t keep_inside(const uint32_t* from, int64_t count, const Band& band, uint32_t* to) {
    const uint32_t width = band.top - band.bottom;
    int64_t kept = 0;
    int64_t i = 0;
#ifdef ST_VECTOR
    for (; i + WIDTH <= count; i += WIDTH) {
        const Vector magnitude = load_vector(from + i);
        const Lanes inside = at_most(minus(magnitude, same(band.bottom)), width - 1);
        // What is written behind the front lies before what is read next.
        kept += store_compressed(to + kept, mask_of(inside), magnitude);
    }
#endif
    for (; i < count; i++) {
        const uint32_t magnitude = from[i];
        if (magnitude - band.bottom < width) to[kept++] = magnitude;
    }
    return kept;
}

uint32_t ranked(const uint32_t* magnitudes, int64_t count, int64_t need, uint32_t* room, uint32_t* bins) {
    Band band{0, MAGNITUDE + 1, need};
    for (;;) {
        count_bins(magnitudes, count, band, bins);
        const int shift = band.shift();
        int64_t left = band.need;
        const int bin = find_bin(&bins, 1, band.bins(), left);
        band = narrowed(band, bin, left);
        if (shift == 0) return band.bottom;
        count = keep_inside(magnitudes, count, band, room);
        magnitudes = room;
    }
}

}  // namespace st
