// Values as 16 bits, or as 8 or 4 with a scale per block, defined to the bit by kernels/value_code.py.

#include <cmath>

#include "common.h"

namespace st {
namespace {

constexpr int64_t WIDE = 256;   // values per scale of the 8-bit code
constexpr int64_t NARROW = 64;  // of the 4-bit code
constexpr float SMALLEST = 1e-30f;
constexpr float LARGEST_SCALE = 0x1.020406p+121f;  // 127 of it are still finite
constexpr uint32_t LARGEST_BF16 = 0x7f7f;
constexpr float ROOT = 0.70710678f;
constexpr float LEVELS[8] = {1.0f, ROOT, 0.5f, ROOT * 0.5f, 0.25f, ROOT * 0.25f, 0.125f, ROOT * 0.125f};

int64_t length_at(int64_t start, int64_t count, int64_t block) { return count - start < block ? count - start : block; }

// Magnitudes are ordered as their bits are, and integers have a maximum that compilers turn into vectors.
float largest_of(const float* values, int64_t length) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < length; i++) {
        const uint32_t magnitude = magnitude_of(values[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return load<float>(reinterpret_cast<const uint8_t*>(&largest));
}

uint32_t bf16_above(float value) {
    const uint32_t bits = (bits_of(value) + 0xffff) >> 16;
    return bits < LARGEST_BF16 ? bits : LARGEST_BF16;
}

float wide(uint32_t bf16) {
    const uint32_t bits = bf16 << 16;
    return load<float>(reinterpret_cast<const uint8_t*>(&bits));
}

// The codes of one block; a whole block has a length that compilers know.
inline void codes8(const float* values, int64_t length, float scale, int8_t* codes) {
    for (int64_t i = 0; i < length; i++) {
        float code = __builtin_nearbyintf(values[i] / scale);
        code = code < 127.0f ? code : 127.0f;
        code = code > -127.0f ? code : -127.0f;
        codes[i] = static_cast<int8_t>(static_cast<int32_t>(code));
    }
}

inline void codes4(const float* values, int64_t length, float scale, uint8_t* codes) {
    float limits[7];
    for (int level = 0; level < 7; level++) limits[level] = scale * ((LEVELS[level] + LEVELS[level + 1]) * 0.5f);
    for (int64_t i = 0; i < length; i++) {
        const uint32_t bits = bits_of(values[i]);
        const uint32_t magnitude = bits & MAGNITUDE;
        uint32_t code = bits >> 31 << 3;
        for (int level = 0; level < 7; level++) code += magnitude < bits_of(limits[level]);
        codes[i] = static_cast<uint8_t>(code);
    }
}

}  // namespace
}  // namespace st

ST_API void st_encode_bf16(const float* values, int64_t count, uint8_t* data) {
    using namespace st;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = bits_of(values[i]);
        const uint32_t even = ((bits & MAGNITUDE) + 0x7fff + (bits >> 16 & 1)) >> 16;
        const uint16_t code = static_cast<uint16_t>((even < LARGEST_BF16 ? even : LARGEST_BF16) | bits >> 31 << 15);
        std::memcpy(data + 2 * i, &code, 2);
    }
}

ST_API int32_t st_decode_bf16(const uint8_t* data, int64_t count, float* values) {
    using namespace st;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = static_cast<uint32_t>(load<uint16_t>(data + 2 * i)) << 16;
        largest = (bits & MAGNITUDE) > largest ? bits & MAGNITUDE : largest;
        std::memcpy(values + i, &bits, 4);
    }
    return largest < INFINITE ? 0 : -1;
}

ST_API int32_t st_decode_fp32(const uint8_t* data, int64_t count, float* values) {
    using namespace st;
    if (count) std::memcpy(values, data, count * sizeof(float));  // no values have no address
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) largest = magnitude_of(values[i]) > largest ? magnitude_of(values[i]) : largest;
    return largest < INFINITE ? 0 : -1;
}

ST_API void st_encode_int8(const float* values, int64_t count, uint8_t* data) {
    using namespace st;
    int8_t* codes = reinterpret_cast<int8_t*>(data + 4 * ((count + WIDE - 1) / WIDE));
    for (int64_t start = 0; start < count; start += WIDE, data += 4) {
        const int64_t length = length_at(start, count, WIDE);
        const float largest = largest_of(values + start, length);
        const bool quiet = largest < SMALLEST;
        float scale = quiet ? 0.0f : largest / 127.0f;
        scale = scale < LARGEST_SCALE ? scale : LARGEST_SCALE;
        std::memcpy(data, &scale, 4);
        if (quiet)
            std::memset(codes + start, 0, length);
        else if (length == WIDE)
            codes8(values + start, WIDE, scale, codes + start);
        else
            codes8(values + start, length, scale, codes + start);
    }
}

ST_API int32_t st_decode_int8(const uint8_t* data, int64_t count, float* values) {
    using namespace st;
    const int8_t* codes = reinterpret_cast<const int8_t*>(data + 4 * ((count + WIDE - 1) / WIDE));
    int64_t wrong = 0;
    for (int64_t start = 0; start < count; start += WIDE, data += 4) {
        const int64_t length = length_at(start, count, WIDE);
        const float scale = load<float>(data);
        wrong += bits_of(scale) > bits_of(LARGEST_SCALE);  // a sign, an infinity or not-a-number as well
        for (int64_t i = 0; i < length; i++) {
            const int8_t code = codes[start + i];
            wrong += code == -128;
            values[start + i] = static_cast<float>(code) * scale;
        }
    }
    return wrong ? -1 : 0;
}

ST_API void st_encode_int4(const float* values, int64_t count, uint8_t* data) {
    using namespace st;
    uint8_t* nibbles = data + 2 * ((count + NARROW - 1) / NARROW);
    uint8_t codes[NARROW];
    for (int64_t start = 0; start < count; start += NARROW, data += 2) {
        const int64_t length = length_at(start, count, NARROW);
        const uint32_t above = bf16_above(largest_of(values + start, length));
        const uint16_t scale = static_cast<uint16_t>(above);
        std::memcpy(data, &scale, 2);
        if (length == NARROW)
            codes4(values + start, NARROW, wide(above), codes);
        else
            codes4(values + start, length, wide(above), codes);
        if (length % 2) codes[length] = 0;
        for (int64_t i = 0; i < (length + 1) / 2; i++)
            *nibbles++ = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    }
}

ST_API int32_t st_decode_int4(const uint8_t* data, int64_t count, float* values) {
    using namespace st;
    const uint8_t* nibbles = data + 2 * ((count + NARROW - 1) / NARROW);
    int64_t wrong = count % 2 && nibbles[count / 2] >> 4;
    for (int64_t start = 0; start < count; start += NARROW, data += 2) {
        const int64_t length = length_at(start, count, NARROW);
        const uint32_t above = load<uint16_t>(data);
        wrong += above > LARGEST_BF16;
        float levels[16];
        for (int code = 0; code < 16; code++) {
            const float level = wide(above) * LEVELS[code & 7];
            levels[code] = code & 8 ? -level : level;
        }
        for (int64_t i = 0; i < length; i++)
            values[start + i] = levels[nibbles[(start + i) / 2] >> (i % 2 * 4) & 15];
    }
    return wrong ? -1 : 0;
}
