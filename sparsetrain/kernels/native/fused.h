// The one pass over memory: add, compare, compact the candidates, write the residual.
#pragma once

#include "vector.h"

namespace st {

// The candidates of one range, ascending: places, values, and room for as many magnitudes.
struct Segment {
    int32_t* places;
    float* values;
    uint32_t* rest;
    int64_t capacity;
    int64_t count;
};

constexpr int64_t SLACK = 64;  // whole vectors are stored past the count

// What is added: nothing, old, or scale * old with each operation rounded.
enum class Term { none, plain, scaled };

// buffer = fresh + term. `fresh` may be the buffer itself.
struct Sum {
    const float* old;
    const float* fresh;
    float* buffer;
    float scale;
    Term term;
    bool streams;  // the buffer is so large that what is written to it should not go through the caches

    // `old` may be null.
    static Sum of(const float* old, float* buffer, int64_t size, float scale, bool scaled) {
        const Term term = old == nullptr ? Term::none : scaled ? Term::scaled : Term::plain;
        return Sum{old, buffer, buffer, scale, term, st::streams(buffer, size)};
    }

    float at(int64_t i) const {
        if (term == Term::none) return fresh[i];
        if (term == Term::plain) return fresh[i] + old[i];
        const float product = scale * old[i];
        return fresh[i] + product;
    }
};

// Where the fresh values lie: tensors that stand end to end, from `begin` on each. The last entry has only the end.
struct Part {
    int64_t begin;
    const float* data;
};

struct Parts {
    std::vector<Part> list;

    // Of `count` tensors of `lengths` elements that fill `size` end to end; the buffer alone for count 0.
    static Parts of(const float* const* fresh, const int64_t* lengths, int32_t count, const float* buffer,
                    int64_t size) {
        Parts parts;
        int64_t begin = 0;
        for (int32_t which = 0; which < count; which++) {
            parts.list.push_back({begin, fresh[which]});
            begin += lengths[which];
        }
        if (count == 0) parts.list.push_back({0, buffer});
        parts.list.push_back({size, nullptr});
        return parts;
    }

    size_t find(int64_t place) const {
        size_t which = 0;
        for (size_t step = list.size(); step > 0; step /= 2)
            while (which + step < list.size() && list[which + step].begin <= place) which += step;
        return which;
    }

    // The sum whose `fresh` is right from the part's begin to the next one's.
    Sum within(Sum sum, size_t which) const {
        sum.fresh = list[which].data - list[which].begin;
        return sum;
    }

    // Calls body(sum, from, to) for the pieces of begin..end, in order, until it returns less than `to`; returns that.
    template <typename Body>
    int64_t each(const Sum& sum, int64_t begin, int64_t end, Body&& body) const {
        for (size_t which = find(begin); begin < end; which++) {
            const int64_t to = list[which + 1].begin < end ? list[which + 1].begin : end;
            const int64_t stop = body(within(sum, which), begin, to);
            if (stop < to) return stop;
            begin = to;
        }
        return end;
    }
};

// Makes buffer[begin..end) the sum, zero where the magnitude reaches `middle`, and appends what reaches `low` to the
// segment. Returns where it stopped: `end`, or earlier when the segment is full. 1 <= low <= middle.
int64_t fused_pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment);

// Makes buffer[begin..end) the sum.
void plain_pass(const Sum& sum, const Parts& parts, int64_t begin, int64_t end);

}  // namespace st
