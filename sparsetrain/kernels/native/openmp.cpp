#include "common.h"

// Takes GOMP_parallel, omp_get_thread_num and omp_get_num_threads of one library.
ST_API void st_use_openmp(void* parallel, void* member, void* size) {
    st::openmp.member = reinterpret_cast<int (*)()>(member);
    st::openmp.size = reinterpret_cast<int (*)()>(size);
    st::openmp.parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(parallel);
}
