// Exact selection for data that no sample describes, and for buffers that are too small to be sampled.
#pragma once

#include "common.h"
#include "fused.h"

namespace st {

// How much memory `radix_select` wants for that many threads.
size_t radix_bytes(int threads);

// Writes the k largest of the sum (already in the buffer if `added`) and zeroes them there. Returns whether all is finite.
bool radix_select(const Sum& sum, const Parts& parts, bool added, int64_t size, int64_t k, int threads, uint8_t* memory,
                  int32_t* indices, float* values);

}  // namespace st
