#include "rank.h"

namespace st {

int64_t keep_inside(const uint32_t* from, int64_t count, const Band& band, uint32_t* to) {
    const uint32_t width = band.top - band.bottom;
    int64_t kept = 0;
    int64_t i = 0;
#ifdef ST_AVX512
    const __m512i bottom = _mm512_set1_epi32(static_cast<int>(band.bottom));
    const __m512i limit = _mm512_set1_epi32(static_cast<int>(width));
    for (; i + 16 <= count; i += 16) {
        const __m512i magnitude = _mm512_loadu_si512(from + i);
        const __mmask16 inside = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, bottom), limit);
        const int found = __builtin_popcount(inside);
        _mm512_mask_storeu_epi32(to + kept, static_cast<__mmask16>(_bzhi_u32(0xffff, found)),
                                 _mm512_maskz_compress_epi32(inside, magnitude));
        kept += found;
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
