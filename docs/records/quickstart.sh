#!/bin/sh
# The screening behind the quickstart's settings: dense and sparse runs of the same 400 steps, data and seed.
# Usage: docs/records/quickstart.sh [folder]; prints one line a run. About 45 s a run on 2 cores.
set -eu
folder=${1:-runs/quickstart-screening}
run() {
    name=$1
    shift
    sparsetrain run quickstart "name=$name" "log.folder=$folder" log.wandb.mode=disabled "$@" >"$folder/$name.log" 2>&1
    echo "$name $(grep -o 'validation [0-9][0-9.]*' "$folder/$name.log" | tail -n 1)"
}
mkdir -p "$folder"
dense="exchange.regime=dense exchange.every=1 masks=null"
for rate in 1e-3 3e-3 1e-2; do
    run "dense-adamw-$rate" $dense "optimizer.learning_rate=$rate"
done
for rate in 0.1 0.3 1.0; do
    run "dense-sgd-$rate" $dense "optimizer={name: sgd, learning_rate: $rate, momentum: 0.9}"
done
for rate in 3e-3 1e-2 2e-2; do
    run "sparse-local-steps-$rate" "optimizer.learning_rate=$rate"
done
run sparse-every-step-sgd exchange.every=1 exchange.density=0.01 exchange.warmup=0.1 \
    "optimizer={name: sgd, learning_rate: 0.3, momentum: 0.9}"
run sparse-every-step-adamw exchange.every=1 exchange.density=0.01 exchange.warmup=0.1
