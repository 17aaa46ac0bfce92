#include "common.h"

// The sum of little-endian words w_i * (2 i + 1), zero-padded, plus the length times an odd constant; modulo 2^64.
ST_API uint64_t st_checksum(const uint8_t* data, int64_t bytes) {
    uint64_t total = static_cast<uint64_t>(bytes) * 0x9e3779b97f4a7c15u;
    const int64_t whole = bytes / 8;
    for (int64_t i = 0; i < whole; i++) total += st::load<uint64_t>(data + 8 * i) * (2 * static_cast<uint64_t>(i) + 1);
    uint64_t last = 0;
    if (bytes > 8 * whole) std::memcpy(&last, data + 8 * whole, bytes - 8 * whole);  // no bytes have no address
    return total + last * (2 * static_cast<uint64_t>(whole) + 1);
}
