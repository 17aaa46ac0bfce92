#!/bin/sh
# Train on a Ray cluster that runs already, over the HTTP of its dashboard (pip install "sparsetrain[submit]"):
#   export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...
#   ADDRESS=http://head:8265 ./ray_job.sh job.yaml train.steps=2000
# This folder goes there, but for what is excluded; runs stay in ~/runs of the head.
set -eu
ADDRESS=${ADDRESS:?give the address of the dashboard, http://HOST:8265}
# shellcheck disable=SC2016  # the head's $HOME
exec ray job submit --address "$ADDRESS" --working-dir . \
    --runtime-env-json '{"excludes": [".git", ".venv", "/runs", "/wandb"]}' -- \
    sh -c 'exec python -m sparsetrain run "$@" cluster.address=auto log.folder="$HOME"/runs' sparsetrain "${@:-quickstart}"
