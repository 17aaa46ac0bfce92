// Vectors of 32-bit lanes, as wide as the processor has them: 16 lanes with AVX-512, 8 with AVX2, none elsewhere.
//
// A kernel has one body for both widths, between #ifdef ST_VECTOR and #endif, followed by the loop over single elements
// that does the rest or, without vectors, everything. Magnitudes have no sign bit, so comparing them as signed integers
// is right. ST_PORTABLE asks for none and ST_NARROW for at most 8, as tests do.
#pragma once

#include "common.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    !defined(ST_PORTABLE) && !defined(ST_NARROW)
#define ST_VECTOR 16
#elif defined(__AVX2__) && !defined(ST_PORTABLE)
#define ST_VECTOR 8
#endif

#ifdef ST_VECTOR

namespace st {

constexpr int WIDTH = ST_VECTOR;
constexpr uint32_t EVERY_LANE = (1u << WIDTH) - 1;

#if ST_VECTOR == 16

using Vector = __m512i;
using Lanes = __mmask16;

inline Vector load_vector(const void* from) { return _mm512_loadu_si512(from); }
inline void store_vector(void* to, Vector v) { _mm512_storeu_si512(to, v); }
inline void stream_vector(void* to, Vector v) { _mm512_stream_si512(static_cast<__m512i*>(to), v); }
inline Vector same(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
inline Vector counting() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline Vector both(Vector a, Vector b) { return _mm512_and_si512(a, b); }
inline Vector plus(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
inline Vector minus(Vector a, Vector b) { return _mm512_sub_epi32(a, b); }
inline Vector larger_of(Vector a, Vector b) { return _mm512_max_epu32(a, b); }
inline Vector sum(Vector a, Vector b) {
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}
inline Vector product(Vector a, Vector b) {
    return _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}
inline Lanes above(Vector a, Vector b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline Lanes equal(Vector a, Vector b) { return _mm512_cmpeq_epi32_mask(a, b); }
inline uint32_t mask_of(Lanes lanes) { return lanes; }
inline Lanes lanes_of(uint32_t mask) { return static_cast<Lanes>(mask); }
inline Vector zero_where(Lanes lanes, Vector v) { return _mm512_maskz_mov_epi32(static_cast<Lanes>(~lanes), v); }
inline Vector compressed(uint32_t mask, Vector v) { return _mm512_maskz_compress_epi32(lanes_of(mask), v); }

#else

using Vector = __m256i;
using Lanes = __m256i;  // all bits of a lane, or none

// For every mask the lanes that it names, in order.
struct Orders {
    uint8_t lane[1 << 8][8];
    constexpr Orders() : lane() {
        for (int mask = 0; mask < 1 << 8; mask++)
            for (int from = 0, to = 0; from < 8; from++)
                if (mask >> from & 1) lane[mask][to++] = static_cast<uint8_t>(from);
    }
};
inline constexpr Orders ORDERS{};

inline Vector load_vector(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_vector(void* to, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline void stream_vector(void* to, Vector v) { _mm256_stream_si256(static_cast<__m256i*>(to), v); }
inline Vector same(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
inline Vector counting() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline Vector both(Vector a, Vector b) { return _mm256_and_si256(a, b); }
inline Vector plus(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
inline Vector minus(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
inline Vector larger_of(Vector a, Vector b) { return _mm256_max_epu32(a, b); }
inline Vector sum(Vector a, Vector b) {
    return _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)));
}
inline Vector product(Vector a, Vector b) {
    return _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)));
}
inline Lanes above(Vector a, Vector b) { return _mm256_cmpgt_epi32(a, b); }
inline Lanes equal(Vector a, Vector b) { return _mm256_cmpeq_epi32(a, b); }
inline uint32_t mask_of(Lanes lanes) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes))); }
inline Lanes lanes_of(uint32_t mask) {
    const Vector bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(same(mask), bit), bit);
}
inline Vector zero_where(Lanes lanes, Vector v) { return _mm256_andnot_si256(lanes, v); }
inline Vector compressed(uint32_t mask, Vector v) {
    const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(ORDERS.lane[mask]));
    return _mm256_permutevar8x32_epi32(v, _mm256_cvtepu8_epi32(order));
}

#endif

inline Vector magnitudes(Vector values) { return both(values, same(MAGNITUDE)); }

// Which magnitudes are at least `limit`.
inline Lanes reach(Vector magnitude, uint32_t limit) { return above(magnitude, same(limit - 1)); }

// Which lanes are at most `limit`, without signs.
inline Lanes at_most(Vector v, uint32_t limit) { return equal(larger_of(v, same(limit)), same(limit)); }

// Stores the lanes of the mask one after the other, and something behind them up to a vector's end. Returns how many.
inline int store_compressed(void* to, uint32_t mask, Vector v) {
    store_vector(to, compressed(mask, v));
    return __builtin_popcount(mask);
}

// The same where only `room` elements may be written.
inline int store_compressed(void* to, uint32_t mask, Vector v, int64_t room) {
    if (room >= WIDTH) return store_compressed(to, mask, v);
    uint32_t lane[WIDTH];
    const int count = store_compressed(lane, mask, v);
    std::memcpy(to, lane, count * sizeof(uint32_t));
    return count;
}

// Returns which of the magnitudes are larger than `kth`, or among the first `ties` that equal it; lowers `ties`.
inline uint32_t winners(Vector magnitude, Vector kth, int64_t& ties) {
    uint32_t first = ties == 0 ? 0 : mask_of(equal(magnitude, kth));
    while (__builtin_popcount(first) > ties) first &= ~(1u << (31 - __builtin_clz(first)));
    ties -= __builtin_popcount(first);
    return mask_of(above(magnitude, kth)) | first;
}

}  // namespace st

#endif
