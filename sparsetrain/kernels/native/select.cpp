// Exact top-k of a sum: sample, one fused pass, ranking of the few candidates, corrections of the buffer.

#include <algorithm>

#include "fused.h"
#include "radix.h"
#include "rank.h"

namespace st {
namespace {

constexpr uint32_t DRIFT = 7919;  // as in kernels/sampling.py
constexpr int64_t AHEAD = 24;     // corrections whose cache lines are under way
constexpr int64_t GROUP = 64;     // sampled positions likewise

// As kernels/sampling.py plans it; count 0: no sample.
struct Plan {
    int64_t count, low, middle, high;
};

struct Limits {
    int64_t least, most;  // most 0: exactly k
};

// What one member finds out about its candidates.
struct Tally {
    int64_t larger = 0;  // than all that the current band holds
    int64_t equal = 0;   // to the k-th, at the end
    int64_t rest = 0;    // magnitudes in the band
    bool finite = true;
    bool full = false;  // the segment had no room for all candidates
};

struct Job {
    Sum sum;
    Parts parts;
    int64_t size, k;
    Plan plan;
    Limits limits;
    int32_t* indices;
    float* values;
};

// All that the members of a team share.
struct Board {
    uint32_t low = 0, middle = 0, high = 0;
    bool finite = true;
    bool enough = false;      // the candidates hold the k largest
    bool everything = false;  // the candidates are the result
    bool upper = false;       // the k-th lies above the upper threshold
    Band band{};
    int bin = 0;
    uint32_t kth = 0;
    int64_t ties = 0;
    std::vector<Segment> segments;
    std::vector<Tally> tallies;
    std::vector<uint32_t*> bins;
};

void sample(const Job& job, int64_t begin, int64_t end, uint32_t* to) {
    const int64_t stride = job.size / job.plan.count;
    const int64_t drift = DRIFT % stride;
    const int shift = __builtin_ctzll(job.plan.count);
    const std::vector<Part>& list = job.parts.list;
    int64_t inside = begin * drift % stride;
    size_t which = job.parts.find(begin * job.size >> shift);
    Sum sum = job.parts.within(job.sum, which);
    // Each position is two cache misses: those of a group are under way together.
    const float* fresh[GROUP];
    int64_t places[GROUP];
    for (int64_t i = begin; i < end;) {
        const int count = static_cast<int>(std::min(GROUP, end - i));
        for (int j = 0; j < count; j++, i++) {
            const int64_t place = places[j] = (i * job.size >> shift) + inside;
            if (place >= list[which + 1].begin) {
                while (place >= list[which + 1].begin) which++;
                sum = job.parts.within(job.sum, which);
            }
            fresh[j] = sum.fresh;
            __builtin_prefetch(sum.fresh + place);
            if (sum.term != Term::none) __builtin_prefetch(sum.old + place);
            inside += drift;
            inside -= inside >= stride ? stride : 0;
        }
        for (int j = 0; j < count; j++) {
            sum.fresh = fresh[j];
            *to++ = magnitude_of(sum.at(places[j]));
        }
    }
}

void thresholds(const Job& job, uint32_t* found, uint32_t* room, uint32_t* bins, Board& board) {
    const auto bounded = [](uint32_t magnitude) { return magnitude < INFINITE ? magnitude : INFINITE; };
    const uint32_t low = ranked(found, job.plan.count, job.plan.low, room, bins);
    // The higher ranks are among the few that reach the lowest.
    const int64_t few = keep_inside(found, job.plan.count, Band{low, MAGNITUDE + 1, 0}, found);
    board.low = bounded(low);
    board.middle = bounded(ranked(found, few, job.plan.middle, room, bins));
    board.high = job.plan.high ? bounded(ranked(found, few, job.plan.high, room, bins)) : INFINITE;
    if (job.limits.most) board.low = board.middle;
}

// Counts candidates at or above `board.high`, and sets the others' magnitudes aside.
void divide(const Board& board, Segment& segment, Tally& tally) {
    int64_t rest = 0, larger = 0, i = 0;
    bool finite = true;
#ifdef ST_VECTOR
    Vector largest = same(0);
    for (; i + WIDTH <= segment.count; i += WIDTH) {
        const Vector magnitude = magnitudes(load_vector(segment.values + i));
        largest = larger_of(largest, magnitude);
        const uint32_t reaches = mask_of(reach(magnitude, board.high));
        rest += store_compressed(segment.rest + rest, ~reaches & EVERY_LANE, magnitude);
    }
    larger = i - rest;
    finite = mask_of(reach(largest, INFINITE)) == 0;
#endif
    for (; i < segment.count; i++) {
        const uint32_t magnitude = magnitude_of(segment.values[i]);
        finite = finite && magnitude < INFINITE;
        segment.rest[rest] = magnitude;
        rest += magnitude < board.high;
        larger += magnitude >= board.high;
    }
    tally.rest = rest;
    tally.larger = larger;
    tally.finite = finite;
}

// Sets the band that holds the k-th magnitude, or notes that there are too few candidates.
void choose_band(const Job& job, Board& board) {
    int64_t count = 0, larger = 0;
    bool full = false;
    for (size_t who = 0; who < board.segments.size(); who++) {
        count += board.segments[who].count;
        larger += board.tallies[who].larger;
        board.finite = board.finite && board.tallies[who].finite;
        full = full || board.tallies[who].full;
    }
    board.everything = !full && job.limits.most && count >= job.limits.least && count <= job.limits.most;
    board.enough = !full && count >= job.k;
    board.upper = larger >= job.k;
    board.band = board.upper ? Band{board.high, INFINITE, job.k} : Band{board.low, board.high, job.k - larger};
}

// The rare sample whose upper threshold was too low: the band is what lies above it.
void set_aside_upper(const Board& board, Segment& segment, Tally& tally) {
    tally.rest = 0;
    tally.larger = 0;
    for (int64_t i = 0; i < segment.count; i++) {
        const uint32_t magnitude = magnitude_of(segment.values[i]);
        segment.rest[tally.rest] = magnitude;
        tally.rest += magnitude >= board.band.bottom;
    }
}

// Narrows the band round by round until it is one magnitude.
void rank(Team& team, int member, Board& board) {
    Segment& segment = board.segments[member];
    Tally& tally = board.tallies[member];
    for (;;) {
        const Band band = board.band;
        count_bins(segment.rest, tally.rest, band, board.bins[member]);
        team.wait();
        if (member == 0) {
            int64_t need = band.need;
            board.bin = find_bin(board.bins.data(), team.size(), band.bins(), need);
            board.band = narrowed(band, board.bin, need);
            board.kth = board.band.bottom;
            board.ties = need;
        }
        team.wait();
        const uint32_t* bins = board.bins[member];
        for (int bin = board.bin + 1; bin < band.bins(); bin++) tally.larger += bins[bin];
        tally.equal = bins[board.bin];
        if (band.shift() == 0) return;
        tally.rest = keep_inside(segment.rest, tally.rest, board.band, segment.rest);
        team.wait();
    }
}

// Writes the winners among a segment's candidates, perhaps over the candidates themselves and never more than `room`;
// notes in `segment.rest` which places of the buffer are wrong, and behind the room for those what belongs there.
int64_t emit(const Board& board, Segment& segment, int64_t ties, int32_t* indices, float* values,
             [[maybe_unused]] int64_t room) {
    const uint32_t kth = board.kth, middle = board.middle;
    uint32_t* proper = segment.rest + segment.capacity + SLACK;
    int64_t at = 0, wrong = 0, i = 0;
#ifdef ST_VECTOR
    const Vector limit = same(kth);
    for (; i + WIDTH <= segment.count; i += WIDTH) {
        const Vector value = load_vector(segment.values + i), place = load_vector(segment.places + i);
        const Vector magnitude = magnitudes(value);
        const uint32_t keep = winners(magnitude, limit, ties);
        store_compressed(indices + at, keep, place, room - at);
        at += store_compressed(values + at, keep, value, room - at);
        const uint32_t amiss = keep ^ mask_of(reach(magnitude, middle));
        if (amiss == 0) continue;
        store_compressed(segment.rest + wrong, amiss, place);
        wrong += store_compressed(proper + wrong, amiss, zero_where(lanes_of(keep), value));
    }
#endif
    for (; i < segment.count; i++) {
        const uint32_t magnitude = magnitude_of(segment.values[i]);
        const bool tie = magnitude == kth && ties > 0;
        const bool keep = magnitude > kth || tie;
        ties -= tie;
        const int32_t place = segment.places[i];
        const float value = segment.values[i];
        if (keep != (magnitude >= middle)) {
            segment.rest[wrong] = static_cast<uint32_t>(place);
            proper[wrong++] = keep ? 0 : bits_of(value);
        }
        if (!keep) continue;
        indices[at] = place;
        values[at++] = value;
    }
    return wrong;
}

// The pass has zeroed what reached the middle threshold: losers among those go back, winners below it are zeroed.
void correct(const Job& job, const Segment& segment, int64_t wrong) {
    float* buffer = job.sum.buffer;
    for (int64_t i = 0; i < wrong; i++) {
        if (i + AHEAD < wrong) __builtin_prefetch(buffer + segment.rest[i + AHEAD], 1);
        std::memcpy(buffer + segment.rest[i], segment.rest + segment.capacity + SLACK + i, sizeof(float));
    }
}

void restore(const Job& job, const Board& board, const Segment& segment) {
    for (int64_t i = 0; i < segment.count; i++)
        if (magnitude_of(segment.values[i]) >= board.middle) job.sum.buffer[segment.places[i]] = segment.values[i];
}

// Copies all candidates: the threshold's count was accepted.
void copy(const Board& board, int member, const Job& job) {
    int64_t at = 0;
    for (int who = 0; who < member; who++) at += board.segments[who].count;
    const Segment& segment = board.segments[member];
    if (segment.places == job.indices) return;
    std::memcpy(job.indices + at, segment.places, 4 * segment.count);
    std::memcpy(job.values + at, segment.values, 4 * segment.count);
}

// One member's part of the whole. Where the candidates do not decide, the buffer is left as the plain sum.
void work(const Job& job, Team& team, int member, uint32_t* found, uint32_t* room, Board& board) {
    sample(job, team.begin(job.plan.count, member), team.begin(job.plan.count, member + 1),
           found + team.begin(job.plan.count, member));
    team.wait();
    if (member == 0) thresholds(job, found, room, board.bins[0], board);
    team.wait();
    const int64_t begin = team.begin(job.size, member), end = team.begin(job.size, member + 1);
    Segment& segment = board.segments[member];
    if (board.low == 0) {  // everything is a candidate: nothing is gained by a pass for some
        plain_pass(job.sum, job.parts, begin, end);
        return;
    }
    const int64_t stop = job.parts.each(job.sum, begin, end, [&](const Sum& sum, int64_t from, int64_t to) {
        return fused_pass(sum, from, to, board.low, board.middle, segment);
    });
    plain_pass(job.sum, job.parts, stop, end);
    divide(board, segment, board.tallies[member]);
    board.tallies[member].full = stop < end;
    team.wait();
    if (member == 0) choose_band(job, board);
    team.wait();
    if (!board.finite) return;
    if (board.everything) return copy(board, member, job);
    if (!board.enough) return restore(job, board, segment);
    if (board.upper) set_aside_upper(board, segment, board.tallies[member]);
    rank(team, member, board);
    team.wait();
    int64_t at = 0, ties = board.ties;
    for (int who = 0; who < member; who++) {
        const Tally& before = board.tallies[who];
        const int64_t taken = before.equal < ties ? before.equal : ties;
        at += before.larger + taken;
        ties -= taken;
    }
    const Tally& own = board.tallies[member];
    const int64_t share = own.larger + (own.equal < ties ? own.equal : ties);
    correct(job, segment, emit(board, segment, ties, job.indices + at, job.values + at, share));
}

int64_t run(const Job& job, int64_t room, int threads) {
    static thread_local Scratch scratch;
    const size_t capacity = room < job.size ? room : job.size;
    // Whole cache lines, so that no two members write to one; a count is followed by what a vector writes too much.
    const size_t each = (capacity + SLACK + 15) / 16 * 16;
    const size_t lists = threads > 1 ? 4 : 2;  // one thread compacts its candidates where the result lies
    const size_t samples = job.plan.count * sizeof(uint32_t);
    const size_t bins = BINS * sizeof(uint32_t);
    const size_t planned = job.plan.count ? 2 * samples + threads * (4 * lists * each + bins) : 0;
    const size_t counted = radix_bytes(threads);
    uint8_t* memory = scratch.get(planned > counted ? planned : counted);
    if (memory == nullptr) return -2;
    Board board;
    int64_t k = job.k;
    if (job.plan.count) {
        uint32_t* found = reinterpret_cast<uint32_t*>(memory);
        uint8_t* at = memory + 2 * samples;
        for (int member = 0; member < threads; member++) {
            board.bins.push_back(reinterpret_cast<uint32_t*>(at));
            at += bins;
            Segment segment{job.indices, job.values, reinterpret_cast<uint32_t*>(at), int64_t(each) - SLACK, 0};
            at += 8 * each;
            if (threads > 1) {
                segment.places = reinterpret_cast<int32_t*>(at);
                segment.values = reinterpret_cast<float*>(at + 4 * each);
                at += 8 * each;
            }
            board.segments.push_back(segment);
        }
        board.tallies.resize(threads);
        Team::run(threads, [&](Team& team, int member) {
            work(job, team, member, found, found + job.plan.count, board);
        });
        if (!board.finite) return -1;
        if (board.everything) {
            int64_t count = 0;
            for (const Segment& segment : board.segments) count += segment.count;
            return count;
        }
        if (board.enough) return k;
        // A threshold of zero accepts all there is.
        if (board.low == 0 && job.size <= job.limits.most) k = job.size;
    }
    const bool finite = radix_select(job.sum, job.parts, job.plan.count != 0, job.size, k, threads, memory, job.indices,
                                     job.values);
    return finite ? k : -1;
}

}  // namespace
}  // namespace st

// Returns how many were selected; -1 for a sum that is not finite, -2 where there is no memory. `old` may be null.
// The fresh values are `parts` tensors of `lengths` elements that fill `size` end to end, or the buffer for 0 parts.
// `indices` and `values` have place for `room` candidates, and for a vector more than that.
ST_API int64_t st_select(const float* old, const float* const* fresh, const int64_t* lengths, int32_t parts,
                         float* buffer, int64_t size, int64_t k, float scale, int32_t scaled, const int64_t* plan,
                         int64_t least, int64_t most, int32_t threads, int64_t room, int32_t* indices,
                         float* values) {
    using namespace st;
    try {
        const Job job{Sum::of(old, buffer, size, scale, scaled), Parts::of(fresh, lengths, parts, buffer, size),
                      size, k, Plan{plan[0], plan[1], plan[2], plan[3]}, Limits{least, most}, indices, values};
        return run(job, room, threads_for(size, threads));
    } catch (const std::bad_alloc&) {
        return -2;
    }
}
