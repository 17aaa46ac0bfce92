// The exact way for any data: three rounds of counting digits of all magnitudes, then one pass that takes the winners.

#include "radix.h"

#include "rank.h"

namespace st {
namespace {

constexpr int DIGITS[3] = {20, 10, 0};  // lowest bit of each digit: 11, 10 and 10 bits
constexpr int TABLES = 4;               // so that equal neighbours do not wait for each other's count
constexpr int SIZE = 1 << 11;

struct Shared {
    uint32_t prefix = 0;  // the digits of the k-th magnitude that are known
    int64_t need = 0;     // how many of those with these digits are wanted
    bool finite = true;
};

inline void count_digit(const float* acc, int64_t begin, int64_t end, int round, uint32_t prefix, uint32_t* tables) {
    std::memset(tables, 0, TABLES * SIZE * sizeof(uint32_t));
    const int digit = DIGITS[round];
    if (round == 0) {
        for (int64_t i = begin; i < end; i++) tables[(i % TABLES) * SIZE + (magnitude_of(acc[i]) >> digit)]++;
        return;
    }
    const int known = DIGITS[round - 1];
    const uint32_t mask = (1u << (known - digit)) - 1;
    const uint32_t wanted = prefix >> known;
    for (int64_t i = begin; i < end; i += 16) {
        const int64_t stop = end - i < 16 ? end : i + 16;
        uint32_t hits = 0;
        for (int64_t j = i; j < stop; j++) hits += magnitude_of(acc[j]) >> known == wanted;
        if (hits == 0) continue;
        for (int64_t j = i; j < stop; j++) {
            const uint32_t magnitude = magnitude_of(acc[j]);
            if (magnitude >> known == wanted) tables[(j % TABLES) * SIZE + (magnitude >> digit & mask)]++;
        }
    }
}

// Takes what is larger than `kth`, and the first `ties` that equal it, `room` in all; zeroes what it takes.
void take(float* acc, int64_t begin, int64_t end, uint32_t kth, int64_t ties, int32_t* indices, float* values,
          [[maybe_unused]] int64_t room) {
    int64_t at = 0;
    int64_t i = begin;
#ifdef ST_VECTOR
    const Vector limit = same(kth);
    for (; i + WIDTH <= end; i += WIDTH) {
        const Vector value = load_vector(acc + i);
        const uint32_t keep = winners(magnitudes(value), limit, ties);
        if (keep == 0) continue;
        const Vector place = plus(same(static_cast<uint32_t>(i)), counting());
        store_compressed(indices + at, keep, place, room - at);
        store_vector(acc + i, zero_where(lanes_of(keep), value));
        at += store_compressed(values + at, keep, value, room - at);
    }
#endif
    for (; i < end; i++) {
        const uint32_t magnitude = magnitude_of(acc[i]);
        if (magnitude < kth || (magnitude == kth && ties == 0)) continue;
        ties -= magnitude == kth;
        indices[at] = static_cast<int32_t>(i);
        values[at++] = acc[i];
        acc[i] = 0.0f;
    }
}

}  // namespace

size_t radix_bytes(int threads) { return static_cast<size_t>(threads) * TABLES * SIZE * sizeof(uint32_t); }

bool radix_select(const Sum& sum, const Parts& parts, bool added, int64_t size, int64_t k, int threads, uint8_t* memory,
                  int32_t* indices, float* values) {
    Shared shared;
    shared.need = k;
    std::vector<int64_t> larger(threads, 0), equal(threads, 0);
    Team::run(threads, [&](Team& team, int member) {
        const int64_t begin = team.begin(size, member), end = team.begin(size, member + 1);
        if (!added) plain_pass(sum, parts, begin, end);
        const auto tables_of = [&](int who) {
            return reinterpret_cast<uint32_t*>(memory) + static_cast<size_t>(who) * TABLES * SIZE;
        };
        uint32_t* mine = tables_of(member);
        for (int round = 0; round < 3; round++) {
            count_digit(sum.buffer, begin, end, round, shared.prefix, mine);
            for (int j = 0; j < SIZE; j++) mine[j] += mine[SIZE + j] + mine[2 * SIZE + j] + mine[3 * SIZE + j];
            team.wait();
            if (member == 0) {
                int digit = SIZE - 1;
                for (int64_t here;; digit--) {
                    here = 0;
                    for (int who = 0; who < team.size(); who++) here += tables_of(who)[digit];
                    if (here > 0 && round == 0 && digit >= static_cast<int>(INFINITE >> DIGITS[0]))
                        shared.finite = false;
                    if (shared.need <= here || digit == 0) break;
                    shared.need -= here;
                }
                shared.prefix |= static_cast<uint32_t>(digit) << DIGITS[round];
            }
            team.wait();
            if (!shared.finite) return;
            const int digit = static_cast<int>(shared.prefix >> DIGITS[round]) & (round == 0 ? SIZE - 1 : SIZE / 2 - 1);
            for (int j = digit + 1; j < SIZE; j++) larger[member] += mine[j];
            equal[member] = mine[digit];
            // The next round clears the tables that member 0 has read by now.
        }
        team.wait();
        int64_t at = 0, ties = shared.need;
        for (int who = 0; who < member; who++) {
            const int64_t taken = equal[who] < ties ? equal[who] : ties;
            at += larger[who] + taken;
            ties -= taken;
        }
        ties = ties < equal[member] ? ties : equal[member];
        take(sum.buffer, begin, end, shared.prefix, ties, indices + at, values + at, larger[member] + ties);
    });
    return shared.finite;
}

}  // namespace st
