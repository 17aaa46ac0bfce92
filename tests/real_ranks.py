"""The real ranks that a test of agreement runs on."""

import pytest
from mpi_ranks import missing, mpi_ranks
from ranks import gloo_ranks

# Arguments `ranks_of`, which calls a body on real ranks, and `size`, their number.
on_real_ranks = pytest.mark.parametrize(
    ("ranks_of", "size"),
    [
        (gloo_ranks, 2),
        (gloo_ranks, 4),
        pytest.param(mpi_ranks, 2, marks=pytest.mark.skipif(bool(missing()), reason=missing())),
    ],
    ids=["gloo 2", "gloo 4", "mpi 2"],
)
