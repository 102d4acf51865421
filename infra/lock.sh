#!/bin/sh
# Renews requirements.lock and requirements-cuda.lock, every package with its hashes: `make lock`.
# Versions stay where pyproject.toml allows them; `make lock UPGRADE=--upgrade` takes the newest of all,
# `make lock UPGRADE="--upgrade-package NAME"` of one. torch has two builds of one version: the public index's, which
# brings CUDA on Linux, and one for the CPU alone, from an index or folder that pip is told of (PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS). The lock accepts either; what CUDA needs stands in a file of its own, for who has that build.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat requirements.lock requirements-cuda.lock >"$folder/lock"
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header \
    --extra test --extra s3 --extra postgres --group env "$@" --output-file "$folder/lock" pyproject.toml
torch=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$folder/lock")
pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "torch==$torch+cpu"
hash=$(sha256sum "$folder"/torch-*.whl | cut -d ' ' -f 1)
grep -q "$hash" "$folder/lock" || sed -i "s/^torch==.*/&\n    --hash=sha256:$hash \\\\/" "$folder/lock"
awk -v folder="$folder" '
    /^[^ ]/ { file = /^(cuda-|nvidia-|triton==)/ ? "requirements-cuda.lock" : "requirements.lock" }
    { print > (folder "/" file) }
' "$folder/lock"
for file in requirements.lock requirements-cuda.lock; do
    echo "# Made by \`make lock\`; pip takes nothing that has none of these hashes." | cat - "$folder/$file" >"$folder/made"
    cp "$folder/made" "$file"
done
