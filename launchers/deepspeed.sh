#!/bin/sh
# Train under DeepSpeed's launcher, without Ray (pip install "sparsetrain[deepspeed]"). On one machine:
#   WORKERS=2 ./deepspeed.sh job.yaml train.steps=200
# On several, which this one reaches by ssh without a password, with pdsh and cluster_configs/deepspeed/hostfile:
#   HOSTS=hostfile ./deepspeed.sh job.yaml
# All machines need the same folder and Python. Without HOSTS no hostfile is read, not even /job/hostfile.
set -eu
WORKERS=${WORKERS:-2}
if [ -n "${HOSTS:-}" ]; then
    exec deepspeed --hostfile "$HOSTS" --no_local_rank --module sparsetrain.worker "${@:-quickstart}"
fi
exec deepspeed --hostfile /dev/null --num_gpus "$WORKERS" --no_local_rank --module sparsetrain.worker "${@:-quickstart}"
