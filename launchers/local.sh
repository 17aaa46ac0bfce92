#!/bin/sh
# Train on this machine: Ray starts and stops by itself, one process per worker.
#   ./local.sh job.yaml train.steps=200 cluster.workers=4
set -eu
exec sparsetrain run "${@:-quickstart}"
