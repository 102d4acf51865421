#!/bin/sh
# Work pools and deployments on the server at PREFECT_API_URL. Safe to repeat; a pool that exists keeps its type, so that
# `gpu` may be of another one (docs/lab.md: Kubernetes).
set -eu
cd "$(dirname "$0")/.."
python infra/pools.py cpu gpu
prefect --no-prompt deploy --all
