#!/bin/sh
# Work pools and deployments on the server at PREFECT_API_URL: all, or with `cpu` those that need no GPU. Safe to repeat; a
# pool that exists keeps its type, so that `gpu` may be of another one (docs/lab.md: Kubernetes).
set -eu
cd "$(dirname "$0")/.."
if [ "${1-}" = cpu ]; then
    python infra/pools.py cpu
    prefect --no-prompt deploy --name '*/local'
else
    python infra/pools.py cpu gpu
    prefect --no-prompt deploy --all
fi
