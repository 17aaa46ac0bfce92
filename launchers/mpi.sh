#!/bin/sh
# Train under MPI, without Ray. On one machine:
#   WORKERS=4 ./mpi.sh job.yaml train.steps=200
# On several, which all of them reach by ssh (a host name a line in the file):
#   WORKERS=4 HOSTS=hosts ./mpi.sh job.yaml
# Ranks find each other through MPI, then gloo or nccl carries the exchange; with cluster.transport=mpi, MPI does.
# MPICH (pip install "sparsetrain[mpi]" brings one) and Open MPI both take these options.
set -eu
WORKERS=${WORKERS:-2}
exec mpiexec ${HOSTS:+-hostfile "$HOSTS"} -n "$WORKERS" python -m sparsetrain.worker "${@:-quickstart}"
