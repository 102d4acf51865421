#!/bin/sh
# Work pools and deployments on the server at PREFECT_API_URL. Safe to repeat; a pool that exists is left as it is, so that
# `gpu` may be of another type (docs/lab.md: Kubernetes).
set -eu
cd "$(dirname "$0")/.."
for pool in cpu gpu; do
    prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect --no-prompt work-pool create "$pool" --type process
done
prefect --no-prompt deploy --all
