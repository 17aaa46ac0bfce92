// Ascending places as bytes and back. Lengths are checked by the caller; the content of what is read is not trusted.
//
// Decoders return 0, or -1 for bytes that no encoder writes. They write `count` places at most, whatever they read.

#include <algorithm>

#include "common.h"

namespace st {
namespace {

bool ascending(const int32_t* places, int64_t count, int64_t size) {
    if (count == 0) return true;
    int64_t wrong = 0;
    for (int64_t i = 1; i < count; i++) wrong += places[i] <= places[i - 1];
    return wrong == 0 && places[0] >= 0 && places[count - 1] < size;
}

int32_t verdict(bool well, const int32_t* places, int64_t count, int64_t size) {
    return well && ascending(places, count, size) ? 0 : -1;
}

int64_t set_bits(const uint8_t* data, int64_t bytes) {
    int64_t found = 0, i = 0;
    for (; i + 8 <= bytes; i += 8) found += __builtin_popcountll(load<uint64_t>(data + i));
    for (; i < bytes; i++) found += __builtin_popcount(data[i]);
    return found;
}

uint64_t word_at(const uint8_t* data, int64_t bytes, int64_t at) {
    if (at + 8 <= bytes) return load<uint64_t>(data + at);
    uint64_t word = 0;
    std::memcpy(&word, data + at, bytes - at);
    return word;
}

// Calls use(i, position) for the set bits in order.
template <typename Use>
void each_bit(const uint8_t* data, int64_t bytes, Use&& use) {
    int64_t i = 0;
    for (int64_t at = 0; at < bytes; at += 8)
        for (uint64_t word = word_at(data, bytes, at); word; word &= word - 1)
            use(i++, 8 * at + __builtin_ctzll(word));
}

// Sets ascending bit positions in zeroed bytes. Each stores its word anew: whether the next one lies in the same word
// is a guess that processors get wrong too often to branch on.
class BitWriter {
  public:
    BitWriter(uint8_t* data, int64_t bytes) : data_(data), bytes_(bytes), whole_(bytes / 8) {
        std::memset(data, 0, bytes);
    }
    void set(int64_t position) {
        const int64_t word = position >> 6;
        held_ = (word == word_ ? held_ : 0) | uint64_t(1) << (position & 63);
        word_ = word;
        if (word < whole_) std::memcpy(data_ + 8 * word, &held_, 8);
    }
    void flush() {
        if (word_ >= whole_ && bytes_ > 8 * word_) std::memcpy(data_ + 8 * word_, &held_, bytes_ - 8 * word_);
    }

  private:
    uint8_t* data_;
    int64_t bytes_, whole_;
    int64_t word_ = 0;
    uint64_t held_ = 0;
};

void write_low(const int32_t* places, int64_t count, int low, uint8_t* data) {
    if (low == 16) {
        for (int64_t i = 0; i < count; i++) {
            const uint16_t part = static_cast<uint16_t>(places[i]);
            std::memcpy(data + 2 * i, &part, 2);
        }
    } else if (low == 8) {
        for (int64_t i = 0; i < count; i++) data[i] = static_cast<uint8_t>(places[i]);
    } else {
        for (int64_t i = 0; i + 1 < count; i += 2)
            data[i / 2] = static_cast<uint8_t>((places[i] & 15) | (places[i + 1] & 15) << 4);
        if (count % 2) data[count / 2] = places[count - 1] & 15;
    }
}

// Bit (places[i] >> low) + i is set for each i. A byte per bit first, a window of them at a time: storing a byte waits
// for nothing, where setting a bit of a word waits for the bit before it. A ninth of the bits and more are set.
void write_high(const int32_t* places, int64_t count, int low, uint8_t* data, int64_t bytes) {
    constexpr int64_t window = 512;  // bytes that are written at a time
    alignas(64) uint8_t bits[8 * window];
    int64_t i = 0;
    for (int64_t done = 0; done < bytes; done += window) {
        const int64_t begin = 8 * done, here = std::min(window, bytes - done);
        std::memset(bits, 0, 8 * here);
        for (int64_t at; i < count && (at = (places[i] >> low) + i - begin) < 8 * here; i++) bits[at] = 1;
        // A product gathers the low bits of eight bytes in its highest byte, the first byte's lowest.
        for (int64_t byte = 0; byte < here; byte++)
            data[done + byte] = static_cast<uint8_t>(load<uint64_t>(bits + 8 * byte) * 0x0102040810204080u >> 56);
    }
}

template <typename Low>
void read_places(const uint8_t* high, int64_t bytes, int low, int32_t* places, Low&& low_of) {
    each_bit(high, bytes, [&](int64_t i, int64_t position) {
        places[i] = static_cast<int32_t>((position - i) << low | low_of(i));
    });
}

}  // namespace
}  // namespace st

ST_API int32_t st_check_ascending(const int32_t* places, int64_t count, int64_t size) {
    return st::ascending(places, count, size);
}

ST_API void st_encode_elias_fano(const int32_t* places, int64_t count, int32_t low, int64_t total, uint8_t* data) {
    if (count == 0) return;
    const int64_t split = (count * low + 7) / 8;
    st::write_low(places, count, low, data);
    st::write_high(places, count, low, data + split, total - split);
}

ST_API int32_t st_decode_elias_fano(const uint8_t* data, int64_t total, int64_t count, int64_t size, int32_t low,
                                    int32_t* places) {
    if (count == 0) return 0;
    const int64_t split = (count * low + 7) / 8;
    const uint8_t* high = data + split;
    if (st::set_bits(high, total - split) != count) return -1;
    if (low == 4 && count % 2 && data[split - 1] >> 4) return -1;
    if (low == 16)
        st::read_places(high, total - split, low, places, [&](int64_t i) { return st::load<uint16_t>(data + 2 * i); });
    else if (low == 8)
        st::read_places(high, total - split, low, places, [&](int64_t i) { return data[i]; });
    else
        st::read_places(high, total - split, low, places, [&](int64_t i) { return data[i / 2] >> (i % 2 * 4) & 15; });
    return st::verdict(true, places, count, size);
}

ST_API void st_encode_block16(const int32_t* places, int64_t count, int64_t size, uint8_t* data) {
    const int64_t blocks = (size + 0xffff) >> 16;
    std::memset(data, 0, 4 * blocks);
    uint8_t* inside = data + 4 * blocks;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t part = static_cast<uint16_t>(places[i]);
        std::memcpy(inside + 2 * i, &part, 2);
    }
    for (int64_t i = 0; i < count;) {
        // The end of a block by doubling and halving: blocks are long.
        const int64_t block = places[i] >> 16, limit = (block + 1) << 16;
        int64_t begin = i, step = 1;
        while (begin + step < count && places[begin + step] < limit) begin += step, step *= 2;
        for (; step; step /= 2)
            if (begin + step < count && places[begin + step] < limit) begin += step;
        const uint32_t here = static_cast<uint32_t>(begin + 1 - i);
        std::memcpy(data + 4 * block, &here, 4);
        i = begin + 1;
    }
}

ST_API int32_t st_decode_block16(const uint8_t* data, int64_t count, int64_t size, int32_t* places) {
    const int64_t blocks = (size + 0xffff) >> 16;
    const uint8_t* inside = data + 4 * blocks;
    int64_t i = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t here = st::load<uint32_t>(data + 4 * block);
        if (here > count - i) return -1;
        for (const int64_t end = i + here; i < end; i++)
            places[i] = static_cast<int32_t>(block << 16 | st::load<uint16_t>(inside + 2 * i));
    }
    return st::verdict(i == count, places, count, size);
}

ST_API void st_encode_bitmap(const int32_t* places, int64_t count, int64_t total, uint8_t* data) {
    if (total == 0) return;
    st::BitWriter bits(data, total);
    for (int64_t i = 0; i < count; i++) bits.set(places[i]);
    bits.flush();
}

ST_API int32_t st_decode_bitmap(const uint8_t* data, int64_t total, int64_t count, int64_t size, int32_t* places) {
    if (st::set_bits(data, total) != count) return -1;
    st::each_bit(data, total, [&](int64_t i, int64_t position) { places[i] = static_cast<int32_t>(position); });
    return st::verdict(true, places, count, size);
}
