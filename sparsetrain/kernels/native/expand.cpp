// The values of single weights to and from the dense matrix that they stand for.

#include "common.h"

namespace st {
namespace {

// Rows of about the same number of elements for each member.
template <typename Body>
void by_rows(int64_t rows, int64_t width, int32_t threads, Body&& body) {
    Team::run(threads_for(rows * width, threads), [&](Team& team, int member) {
        const int64_t each = (rows + team.size() - 1) / team.size();
        const int64_t end = each * (member + 1) < rows ? each * (member + 1) : rows;
        for (int64_t i = each * member; i < end; i++) body(i);
    });
}

}  // namespace
}  // namespace st

// Fills out [rows, width]: values at their places, zeros elsewhere.
ST_API void st_expand(const int32_t* starts, const int32_t* columns, const float* values, int64_t rows, int64_t width,
                      float* out, int32_t threads) {
    st::by_rows(rows, width, threads, [&](int64_t i) {
        float* row = out + i * width;
        std::memset(row, 0, width * sizeof(float));
        for (int64_t j = starts[i]; j < starts[i + 1]; j++) row[columns[j]] = values[j];
    });
}

// The values of a dense matrix at the places of a pattern.
ST_API void st_collect(const int32_t* starts, const int32_t* columns, const float* dense, int64_t rows, int64_t width,
                       float* values, int32_t threads) {
    st::by_rows(rows, width, threads, [&](int64_t i) {
        const float* row = dense + i * width;
        for (int64_t j = starts[i]; j < starts[i + 1]; j++) values[j] = row[columns[j]];
    });
}

// values[order[j]] for each j.
ST_API void st_reorder(const float* values, const int32_t* order, int64_t count, float* out, int32_t threads) {
    st::Team::run(st::threads_for(count * 4, threads), [&](st::Team& team, int member) {
        const int64_t end = team.begin(count, member + 1);
        for (int64_t j = team.begin(count, member); j < end; j++) out[j] = values[order[j]];
    });
}
