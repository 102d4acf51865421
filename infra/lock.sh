#!/bin/sh
# Renews requirements.lock and requirements-cpu.lock, every package with its hashes: `make lock`.
# Versions stay where pyproject.toml allows them; `make lock UPGRADE=--upgrade` takes the newest of all,
# `make lock UPGRADE="--upgrade-package NAME"` of one. torch has two builds of one version: the public index's, which
# brings CUDA on Linux, and one for the CPU alone, from an index or folder that pip has to be told of here
# (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS). The first stands in requirements.lock, the second in requirements-cpu.lock.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp requirements.lock "$folder/lock"
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header \
    --extra test --extra s3 --extra postgres --group env "$@" --output-file "$folder/lock" pyproject.toml
torch=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$folder/lock")+cpu
pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "torch==$torch"
hash=$(sha256sum "$folder"/torch-*.whl | cut -d ' ' -f 1)
made="# Made by \`make lock\`; pip takes nothing that has none of these hashes."
printf '%s\n' "$made" "torch==$torch \\" "    --hash=sha256:$hash" >requirements-cpu.lock
echo "$made" | cat - "$folder/lock" >requirements.lock
