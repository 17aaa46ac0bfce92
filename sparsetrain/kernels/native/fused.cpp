#include "fused.h"

#include <algorithm>

namespace st {
namespace {

constexpr int64_t CHUNK = 4096;  // elements between two looks at the room that is left
constexpr int64_t AHEAD = 1024;  // elements

#ifdef ST_AVX512

template <Term TERM>
inline __m512 sum_of(const Sum& sum, int64_t i, __m512 scale, __mmask16 lanes) {
    const __m512 fresh = _mm512_maskz_loadu_ps(lanes, sum.fresh + i);
    if (TERM == Term::none) return fresh;
    const __m512 old = _mm512_maskz_loadu_ps(lanes, sum.old + i);
    return _mm512_add_ps(fresh, TERM == Term::plain ? old : _mm512_mul_ps(scale, old));
}

template <Term TERM, bool STREAM>
void chunk_pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment) {
    const __m512 scale = _mm512_set1_ps(sum.scale);
    const __m512i every = _mm512_set1_epi32(static_cast<int>(MAGNITUDE));
    const __m512i low_bits = _mm512_set1_epi32(static_cast<int>(low));
    const __m512i middle_bits = _mm512_set1_epi32(static_cast<int>(middle));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t count = segment.count;
    const auto vector = [&](int64_t i, __mmask16 lanes) {
        const __m512 acc = sum_of<TERM>(sum, i, scale, lanes);
        const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(acc), every);
        const __mmask16 candidate = _mm512_cmpge_epu32_mask(magnitude, low_bits);
        const __mmask16 stays = _mm512_cmplt_epu32_mask(magnitude, middle_bits);
        if (STREAM && lanes == 0xffff)
            _mm512_stream_ps(sum.buffer + i, _mm512_maskz_mov_ps(stays, acc));
        else
            _mm512_mask_storeu_ps(sum.buffer + i, lanes, _mm512_maskz_mov_ps(stays, acc));
        // Cheaper than storing nothing: stores to one place again and again wait for each other.
        if (candidate == 0) return;
        const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(i)), lane);
        _mm512_storeu_si512(segment.places + count, _mm512_maskz_compress_epi32(candidate, place));
        _mm512_storeu_ps(segment.values + count, _mm512_maskz_compress_ps(candidate, acc));
        count += __builtin_popcount(candidate);
    };
    int64_t i = begin;
    if (STREAM && until_line(sum.buffer + i)) {
        const int64_t head = std::min(until_line(sum.buffer + i), end - i);
        vector(i, static_cast<__mmask16>((1u << head) - 1));
        i += head;
    }
    for (; i + 32 <= end; i += 32) {
        // The processor's own prefetcher stays too close when the loop does this much; past the end it is harmless.
        for (int64_t line = AHEAD; line < AHEAD + 32; line += 16) {
            __builtin_prefetch(sum.fresh + i + line);
            if (TERM != Term::none) __builtin_prefetch(sum.old + i + line);
        }
        vector(i, 0xffff);
        vector(i + 16, 0xffff);
    }
    for (; i < end; i += 16) vector(i, end - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (end - i)) - 1));
    segment.count = count;
}

#else

// Blocks of 16 that compilers turn into vectors; only blocks with a candidate are looked at one by one.
template <Term TERM, bool STREAM>
void chunk_pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment) {
    int64_t count = segment.count;
    for (int64_t i = begin, lanes; i < end; i += lanes) {
        const int64_t head = STREAM ? until_line(sum.buffer + i) : 0;
        lanes = std::min(end - i, head ? head : LINE);
        float acc[16] = {}, rest[16];
        uint32_t bits[16];
        if (lanes == 16) {
            for (int j = 0; j < 16; j++) {
                if (TERM == Term::none) acc[j] = sum.fresh[i + j];
                if (TERM == Term::plain) acc[j] = sum.fresh[i + j] + sum.old[i + j];
                if (TERM == Term::scaled) {
                    const float product = sum.scale * sum.old[i + j];
                    acc[j] = sum.fresh[i + j] + product;
                }
            }
        } else {
            for (int j = 0; j < lanes; j++) acc[j] = sum.at(i + j);
        }
        std::memcpy(bits, acc, sizeof(bits));
        uint32_t candidates = 0;
        for (int j = 0; j < 16; j++) {
            const uint32_t magnitude = bits[j] & MAGNITUDE;
            candidates += magnitude >= low;
            bits[j] = magnitude >= middle ? 0 : bits[j];
        }
        if (STREAM && lanes == LINE) {
            std::memcpy(rest, bits, sizeof(bits));
            stream_line(sum.buffer + i, rest);
        } else {
            std::memcpy(sum.buffer + i, bits, 4 * lanes);
        }
        if (candidates == 0) continue;
        for (int j = 0; j < lanes; j++) {
            segment.places[count] = static_cast<int32_t>(i + j);
            segment.values[count] = acc[j];
            count += magnitude_of(acc[j]) >= low;
        }
    }
    segment.count = count;
}

#endif

template <Term TERM, bool STREAM>
int64_t pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment) {
    int64_t start = begin;
    for (int64_t stop; start < end; start = stop) {
        stop = std::min(end, start + CHUNK);
        if (segment.count + (stop - start) > segment.capacity) break;
        chunk_pass<TERM, STREAM>(sum, start, stop, low, middle, segment);
    }
    if (STREAM) stream_end();
    return start;
}

template <Term TERM>
int64_t pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment) {
    // Where the sum replaces its term, its lines are in cache already.
    const bool stream = sum.fresh != sum.buffer && sum.streams;
    return stream ? pass<TERM, true>(sum, begin, end, low, middle, segment)
                  : pass<TERM, false>(sum, begin, end, low, middle, segment);
}

}  // namespace

int64_t fused_pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment) {
    if (sum.term == Term::none) return pass<Term::none>(sum, begin, end, low, middle, segment);
    if (sum.term == Term::plain) return pass<Term::plain>(sum, begin, end, low, middle, segment);
    return pass<Term::scaled>(sum, begin, end, low, middle, segment);
}

namespace {

void add(const Sum& sum, int64_t begin, int64_t end) {
    if (sum.term == Term::none) {
        if (sum.fresh != sum.buffer && begin < end)
            std::memcpy(sum.buffer + begin, sum.fresh + begin, (end - begin) * sizeof(float));
        return;
    }
    if (sum.term == Term::plain) {
        for (int64_t i = begin; i < end; i++) sum.buffer[i] = sum.fresh[i] + sum.old[i];
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        const float product = sum.scale * sum.old[i];
        sum.buffer[i] = sum.fresh[i] + product;
    }
}

}  // namespace

void plain_pass(const Sum& sum, const Parts& parts, int64_t begin, int64_t end) {
    parts.each(sum, begin, end, [](const Sum& piece, int64_t from, int64_t to) {
        add(piece, from, to);
        return to;
    });
}

}  // namespace st
