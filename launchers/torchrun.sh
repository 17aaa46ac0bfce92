#!/bin/sh
# Train under torchrun, without Ray. On one machine:
#   WORKERS=2 ./torchrun.sh job.yaml train.steps=200
# On several, the same line on each (HEAD is the host name of any one of them):
#   NODES=2 HEAD=node0 WORKERS=2 ./torchrun.sh job.yaml
# All machines need the same run folder (log.folder on a shared file system) to resume.
set -eu
WORKERS=${WORKERS:-2}
NODES=${NODES:-1}
if [ "$NODES" -eq 1 ]; then
    exec torchrun --standalone --nproc-per-node "$WORKERS" -m sparsetrain.worker "${@:-quickstart}"
fi
exec torchrun --nnodes "$NODES" --nproc-per-node "$WORKERS" --rdzv-backend c10d --rdzv-id sparsetrain \
    --rdzv-endpoint "${HEAD:?give the host name of one node}:${PORT:-29400}" -m sparsetrain.worker "${@:-quickstart}"
