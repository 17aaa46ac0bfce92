// Gaps between places, bit-packed in blocks of 128 at the width of the block's largest.

#include "common.h"

namespace st {
namespace {

constexpr int64_t BLOCK = 128;
constexpr int WIDEST = 31;

int width_of(uint32_t gap) { return gap == 0 ? 0 : 32 - __builtin_clz(gap); }

int64_t block_bytes(int64_t length, int width) { return (length * width + 7) / 8; }

int64_t length_at(int64_t start, int64_t count) { return count - start < BLOCK ? count - start : BLOCK; }

// Writes the gaps of one block; returns the bits of all of them together.
uint32_t gaps_of(const int32_t* places, int64_t start, int64_t length, uint32_t* gaps) {
    gaps[0] = static_cast<uint32_t>(places[start] - (start ? places[start - 1] : -1) - 1);
    uint32_t all = gaps[0];
    for (int64_t i = 1; i < length; i++) {
        gaps[i] = static_cast<uint32_t>(places[start + i] - places[start + i - 1] - 1);
        all |= gaps[i];
    }
    return all;
}

void pack(const uint32_t* gaps, int64_t length, int width, uint8_t* data) {
    uint64_t held = 0;
    int filled = 0;
    for (int64_t i = 0; i < length; i++) {
        held |= uint64_t(gaps[i]) << filled;
        filled += width;
        if (filled >= 32) {
            const uint32_t word = static_cast<uint32_t>(held);
            std::memcpy(data, &word, 4);
            data += 4;
            held >>= 32;
            filled -= 32;
        }
    }
    std::memcpy(data, &held, (filled + 7) / 8);
}

}  // namespace
}  // namespace st

ST_API int64_t st_deltas_bytes(const int32_t* places, int64_t count) {
    uint32_t gaps[st::BLOCK];
    int64_t total = 0;
    for (int64_t start = 0; start < count; start += st::BLOCK) {
        const int64_t length = st::length_at(start, count);
        total += 1 + st::block_bytes(length, st::width_of(st::gaps_of(places, start, length, gaps)));
    }
    return total;
}

ST_API void st_encode_deltas(const int32_t* places, int64_t count, uint8_t* data) {
    uint32_t gaps[st::BLOCK];
    uint8_t* widths = data;
    data += (count + st::BLOCK - 1) / st::BLOCK;
    for (int64_t start = 0; start < count; start += st::BLOCK) {
        const int64_t length = st::length_at(start, count);
        const int width = st::width_of(st::gaps_of(places, start, length, gaps));
        *widths++ = static_cast<uint8_t>(width);
        st::pack(gaps, length, width, data);
        data += st::block_bytes(length, width);
    }
}

ST_API int32_t st_decode_deltas(const uint8_t* data, int64_t total, int64_t count, int64_t size, int32_t* places) {
    const int64_t blocks = (count + st::BLOCK - 1) / st::BLOCK;
    int64_t needed = blocks;
    for (int64_t block = 0; block < blocks; block++) {
        if (data[block] > st::WIDEST) return -1;
        needed += st::block_bytes(st::length_at(block * st::BLOCK, count), data[block]);
    }
    if (needed != total) return -1;
    // Whole words are read from a copy of the block, so that the last one is not read past its end.
    uint8_t copy[st::BLOCK * 4 + 8] = {};
    const uint8_t* at = data + blocks;
    int64_t next = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int width = data[block];
        const int64_t start = block * st::BLOCK, length = st::length_at(start, count);
        const int64_t bytes = st::block_bytes(length, width);
        std::memcpy(copy, at, bytes);
        at += bytes;
        const uint32_t mask = (uint32_t(1) << width) - 1;
        uint32_t all = 0;
        for (int64_t i = 0; i < length; i++) {
            const int64_t bit = i * width;
            const uint32_t gap = static_cast<uint32_t>(st::load<uint64_t>(copy + (bit >> 3)) >> (bit & 7)) & mask;
            all |= gap;
            next += gap;
            // Wraps only past the end, and then the whole is refused below.
            places[start + i] = static_cast<int32_t>(next++);
        }
        const int64_t unused = 8 * bytes - length * width;
        if (st::width_of(all) != width || (unused && copy[bytes - 1] >> (8 - unused))) return -1;
    }
    return next <= size ? 0 : -1;
}
