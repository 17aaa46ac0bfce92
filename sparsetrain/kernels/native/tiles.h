// A batch in tiles: rows of features of a few samples each, so that one weight meets a whole vector of them.
//
// Products with single weights load what they multiply, so a tile has to lie in a near cache. Batches come and go as
// torch keeps them, sample by sample; a tile is turned on the way in and on the way out. Results are equal to rounding,
// not bit for bit, to those of other versions: here multiplications and additions are fused where the processor can.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "common.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if !defined(ST_PORTABLE) && !defined(ST_NARROW) && defined(__AVX512F__)
#define ST_LANES 16
#elif !defined(ST_PORTABLE) && defined(__AVX2__) && defined(__FMA__)
#define ST_LANES 8
#else
#define ST_LANES 4
#endif

namespace st {

constexpr int LANES = ST_LANES;
constexpr int MOST_VECTORS = 8;  // of a tile's row: as many sums as hide the time that one takes
constexpr int TOGETHER = 4;  // rows with the same columns that are worked on at a time
constexpr int64_t SEGMENT = 512;  // columns; a pattern tells where each of its rows enters each of them
constexpr int64_t TILE_BYTES = 1 << 18;  // of the columns that a tile holds at a time: they stay in the second cache

// Columns of a tile with N vectors in each that are worked on at a time: whole segments.
template <int N>
constexpr int64_t COLUMNS = TILE_BYTES / (N * LANES * 4) / SEGMENT * SEGMENT;

typedef float Floats __attribute__((vector_size(LANES * 4)));

inline Floats load_floats(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

inline void store_floats(float* to, Floats v) { std::memcpy(to, &v, sizeof(v)); }

inline Floats all_of(float value) {
#if ST_LANES == 16
    return (Floats)_mm512_set1_ps(value);
#elif ST_LANES == 8
    return (Floats)_mm256_set1_ps(value);
#else
    return Floats{value, value, value, value};
#endif
}

inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if ST_LANES == 16
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ST_LANES == 8
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && !defined(ST_PORTABLE)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// Writes the sums of the lanes of four vectors.
inline void sums_of_four(const Floats* v, float* to) {
#if ST_LANES == 16 || ST_LANES == 8
#if ST_LANES == 16
    __m256 h[4];
    for (int i = 0; i < 4; i++)
        h[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v[i]), 1)));
#else
    const __m256 h[4] = {(__m256)v[0], (__m256)v[1], (__m256)v[2], (__m256)v[3]};
#endif
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
    for (int i = 0; i < 4; i++) to[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
#endif
}

// Turns 8 x 8 (with AVX) or 4 x 4 values: to[j * to_step + i] = from[i * from_step + j].
#if ST_LANES >= 8
constexpr int64_t TURN = 8;
inline void turn(const float* from, int64_t from_step, float* to, int64_t to_step) {
    __m256 r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * from_step);
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * to_step, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * to_step, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
#else
constexpr int64_t TURN = 4;
inline void turn(const float* from, int64_t from_step, float* to, int64_t to_step) {
    float block[4][4];
    for (int i = 0; i < 4; i++) std::memcpy(block[i], from + i * from_step, sizeof(block[i]));
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) to[i * to_step + j] = block[j][i];
}
#endif

// Turns `rows` x `columns` values of any number.
__attribute__((noinline)) static void turn_all(const float* from, int64_t from_step, int64_t rows, int64_t columns,
                                               float* to, int64_t to_step) {
    const int64_t whole_rows = rows - rows % TURN, whole_columns = columns - columns % TURN;
    for (int64_t i = 0; i < whole_rows; i += TURN)
        for (int64_t j = 0; j < whole_columns; j += TURN)
            turn(from + i * from_step + j, from_step, to + j * to_step + i, to_step);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; j++)
            to[j * to_step + i] = from[i * from_step + j];
}

// A range of samples with the vectors that its rows have in a tile: 1, 2, 4 or 8.
struct Tile {
    int64_t begin, samples;
    int vectors;
    int64_t width() const { return vectors * LANES; }
};

inline int vectors_for(int64_t samples) {
    int vectors = 1;
    while (vectors < MOST_VECTORS && vectors * LANES < samples) vectors *= 2;
    return vectors;
}

inline int64_t tiles_of(int64_t batch) { return (batch + MOST_VECTORS * LANES - 1) / (MOST_VECTORS * LANES); }

inline Tile tile_at(int64_t number, int64_t batch) {
    const int64_t begin = number * MOST_VECTORS * LANES;
    const int64_t samples = std::min(batch - begin, int64_t(MOST_VECTORS) * LANES);
    return {begin, samples, vectors_for(samples)};
}

// Fills `to` [columns, tile width] with columns first..first+columns-1 of the tile's samples, zero behind the last one.
inline void turn_in(const Tile& tile, const float* batch, int64_t step, int64_t first, int64_t columns, float* to) {
    const int64_t width = tile.width();
    if (tile.samples < width)
        for (int64_t c = 0; c < columns; c++)
            std::memset(to + c * width + tile.samples, 0, (width - tile.samples) * sizeof(float));
    // A strip of columns at a time: whole cache lines of each sample.
    for (int64_t c = 0; c < columns; c += 16)
        turn_all(batch + tile.begin * step + first + c, step, tile.samples, std::min(int64_t(16), columns - c),
                 to + c * width, width);
}

// What a product takes, in elements that are worth a thread as those of a selection are.
inline int64_t work_of(const int32_t* starts, int64_t rows, int64_t width, int64_t batch) {
    return starts[rows] * std::min<int64_t>(batch, 64) / 8 + batch * (rows + width) / 4;
}

// Where a member's part of the rows begins, when a row costs as much as its entries and `extra` more: at a group's.
inline int64_t part_of_rows(const int32_t* starts, int64_t rows, int64_t extra, int64_t member, int64_t members) {
    const int64_t total = starts[rows] + rows * extra, goal = total / members * member;
    if (member == members) return rows;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (starts[middle] + middle * extra < goal) low = middle + 1;
        else high = middle;
    }
    return low - low % TOGETHER;
}

// Calls body.template operator()<vectors>() for a tile's vectors.
template <typename Body>
inline void with_vectors(int vectors, Body&& body) {
    if (vectors == 1) body(std::integral_constant<int, 1>{});
    else if (vectors == 2) body(std::integral_constant<int, 2>{});
    else if (vectors == 4) body(std::integral_constant<int, 4>{});
    else body(std::integral_constant<int, 8>{});
}

}  // namespace st
