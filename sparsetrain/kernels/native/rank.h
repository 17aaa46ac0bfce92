// Finding the k-th largest of magnitudes by counting: rounds of a histogram, each inside one bin of the last.
#pragma once

#include "vector.h"

namespace st {

constexpr int BINS = 4096;

// The range of magnitudes in which the wanted one lies, and how many of the range are at least as large as it.
struct Band {
    uint32_t bottom;
    uint32_t top;  // not in the band
    int64_t need;

    int shift() const {
        int shift = 0;
        while ((top - 1 - bottom) >> shift >= BINS) shift++;
        return shift;
    }
    int bins() const { return static_cast<int>((top - 1 - bottom) >> shift()) + 1; }
};

inline void count_bins(const uint32_t* magnitudes, int64_t count, const Band& band, uint32_t* bins) {
    const int shift = band.shift();
    std::memset(bins, 0, band.bins() * sizeof(uint32_t));
    for (int64_t i = 0; i < count; i++) bins[(magnitudes[i] - band.bottom) >> shift]++;
}

// Returns the highest bin with which the `need` largest are reached; lowers `need` by all that lie in higher ones.
inline int find_bin(const uint32_t* const* bins, int sets, int size, int64_t& need) {
    for (int bin = size - 1;; bin--) {
        int64_t here = 0;
        for (int set = 0; set < sets; set++) here += bins[set][bin];
        if (need <= here || bin == 0) return bin;
        need -= here;
    }
}

inline Band narrowed(const Band& band, int bin, int64_t need) {
    const uint32_t bottom = band.bottom + (static_cast<uint32_t>(bin) << band.shift());
    const uint32_t width = 1u << band.shift();
    return Band{bottom, band.top - bottom < width ? band.top : bottom + width, need};
}

// Moves the magnitudes inside the band to the front; returns their number. `to` may be `from`.
int64_t keep_inside(const uint32_t* from, int64_t count, const Band& band, uint32_t* to);

// Returns the need-th largest of magnitudes; `room` holds as many, `bins` BINS counts.
uint32_t ranked(const uint32_t* magnitudes, int64_t count, int64_t need, uint32_t* room, uint32_t* bins);

}  // namespace st
