#!/bin/sh
# Train under MPI, without Ray. On one machine:
#   WORKERS=4 ./mpi.sh job.yaml train.steps=200
# On several, which all of them reach by ssh (a host name a line in the file):
#   WORKERS=4 HOSTS=hosts ./mpi.sh job.yaml
# Ranks find each other through MPI, then gloo or nccl carries the exchange; with cluster.transport=mpi, MPI does.
# MPICH (`pip install ".[mpi]"` in a clone brings one) and Open MPI both take these options. mpiexec and mpi4py have to be
# of the same one.
set -eu
WORKERS=${WORKERS:-2}
of() { case $1 in *[Oo]pen?MPI* | *OpenRTE*) echo "Open MPI" ;; *) echo MPICH ;; esac }
CODE='import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())'
STARTS=$(of "$(mpiexec --version 2>&1)")
if LIBRARY=$(python -c "$CODE" 2> /dev/null) && [ "$STARTS" != "$(of "$LIBRARY")" ]; then
    echo "mpi.sh: mpiexec is of $STARTS, python's mpi4py of $(of "$LIBRARY"): take both of one MPI" >&2
    exit 2
fi
exec mpiexec ${HOSTS:+-hostfile "$HOSTS"} -n "$WORKERS" python -m sparsetrain.worker "${@:-quickstart}"
