#include "fused.h"

#include <algorithm>

namespace st {
namespace {

constexpr int64_t CHUNK = 4096;  // elements between two looks at the room that is left
constexpr int64_t AHEAD = 1024;  // elements

#ifdef ST_VECTOR

template <Term TERM>
inline Vector sum_at(const Sum& part, int64_t i) {
    const Vector fresh = load_vector(part.fresh + i);
    if (TERM == Term::none) return fresh;
    const Vector old = load_vector(part.old + i);
    return sum(fresh, TERM == Term::plain ? old : product(same(bits_of(part.scale)), old));
}

template <Term TERM, bool STREAM>
void chunk_pass(const Sum& part, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment) {
    int64_t count = segment.count;
    const auto single = [&](int64_t i) {
        const float acc = part.at(i);
        const uint32_t magnitude = magnitude_of(acc);
        part.buffer[i] = magnitude >= middle ? 0.0f : acc;
        segment.places[count] = static_cast<int32_t>(i);
        segment.values[count] = acc;
        count += magnitude >= low;
    };
    const auto vector = [&](int64_t i) {
        const Vector acc = sum_at<TERM>(part, i);
        const Vector magnitude = magnitudes(acc);
        const Vector left = zero_where(reach(magnitude, middle), acc);
        if (STREAM)
            stream_vector(part.buffer + i, left);
        else
            store_vector(part.buffer + i, left);
        const uint32_t candidates = mask_of(reach(magnitude, low));
        // Cheaper than storing nothing: stores to one place again and again wait for each other.
        if (candidates == 0) return;
        store_compressed(segment.places + count, candidates, plus(same(static_cast<uint32_t>(i)), counting()));
        count += store_compressed(segment.values + count, candidates, acc);
    };
    int64_t i = begin;
    for (const int64_t head = STREAM ? std::min(begin + until_line(part.buffer + begin), end) : begin; i < head; i++)
        single(i);
    for (; i + 2 * LINE <= end; i += 2 * LINE) {
        // The processor's own prefetcher stays too close when the loop does this much; past the end it is harmless.
        for (int64_t line = AHEAD; line < AHEAD + 2 * LINE; line += LINE) {
            __builtin_prefetch(part.fresh + i + line);
            if (TERM != Term::none) __builtin_prefetch(part.old + i + line);
        }
        for (int64_t at = 0; at < 2 * LINE; at += WIDTH) vector(i + at);
    }
    for (; i + WIDTH <= end; i += WIDTH) vector(i);
    for (; i < end; i++) single(i);
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
