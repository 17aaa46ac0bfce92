// The one pass over memory: add, compare, compact the candidates, write the residual.
#pragma once

#include "common.h"

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

struct Sum {
    const float* old;
    float* buffer;
    float scale;
    Term term;

    float at(int64_t i) const {
        if (term == Term::none) return buffer[i];
        if (term == Term::plain) return buffer[i] + old[i];
        const float product = scale * old[i];
        return buffer[i] + product;
    }
};

// Makes buffer[begin..end) the sum, zero where the magnitude reaches `middle`, and appends what reaches `low` to the
// segment. Returns where it stopped: `end`, or earlier when the segment is full. 1 <= low <= middle.
int64_t fused_pass(const Sum& sum, int64_t begin, int64_t end, uint32_t low, uint32_t middle, Segment& segment);

// Makes buffer[begin..end) the sum.
void plain_pass(const Sum& sum, int64_t begin, int64_t end);

}  // namespace st
