#!/bin/sh
# Work pools and deployments on the server at PREFECT_API_URL. Safe to repeat.
set -eu
cd "$(dirname "$0")/.."
for pool in cpu gpu; do
    prefect --no-prompt work-pool create "$pool" --type process --overwrite
done
prefect --no-prompt deploy --all
