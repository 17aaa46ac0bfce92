#!/bin/sh
# The screening behind the quickstart's settings: dense and sparse runs of the same 320 steps and data.
# Usage: docs/records/quickstart.sh [folder]; prints one line a run. About a minute a run on 2 cores.
set -eu
folder=${1:-runs/quickstart-screening}
run() {
    name=$1
    shift
    sparsetrain run quickstart "name=$name" "log.folder=$folder" log.wandb.mode=disabled "$@" >"$folder/$name.log" 2>&1
    echo "$name: $(grep -o 'validation [0-9][0-9.]*' "$folder/$name.log" | tail -n 1)," \
        "$(grep -o 'sent [0-9.]* [kM]*B' "$folder/$name.log" | tail -n 1) a step"
}
mkdir -p "$folder"
dense="exchange.regime=dense exchange.every=1 exchange.values=fp32"
for rate in 1e-3 3e-3 1e-2; do
    run "dense-adamw-$rate" $dense masks=null "optimizer.learning_rate=$rate"
done
for rate in 0.03 0.1 0.3; do
    run "dense-sgd-$rate" $dense masks=null "optimizer={name: sgd, learning_rate: $rate, momentum: 0.9}"
done
for rate in 1e-2 2e-2 3e-2 5e-2; do
    run "sparse-$rate" "optimizer.learning_rate=$rate"
done
# What each half does alone.
run dense-weights-local-steps-3e-3 masks=null exchange.density=0.025 optimizer.learning_rate=3e-3
for rate in 3e-3 1e-2 3e-2; do
    run "sparse-weights-dense-exchange-$rate" $dense "optimizer.learning_rate=$rate"
done
# Every-step exchange of as many bytes.
run sparse-every-step-adamw-3e-2 exchange.every=1 exchange.density=0.05 exchange.warmup=0.1 optimizer.learning_rate=3e-2
run sparse-every-step-sgd-0.1 exchange.every=1 exchange.density=0.05 exchange.warmup=0.1 \
    "optimizer={name: sgd, learning_rate: 0.1, momentum: 0.9}"
for seed in 1 2; do
    run "dense-adamw-3e-3-seed-$seed" $dense masks=null optimizer.learning_rate=3e-3 "seed=$seed"
    run "sparse-3e-2-seed-$seed" optimizer.learning_rate=3e-2 "seed=$seed"
done
