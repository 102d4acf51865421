"""Make the buckets that do not exist yet: python infra/buckets.py BUCKET... (AWS_ENDPOINT_URL, and a key that may)."""

from __future__ import annotations

import sys

import boto3

if __name__ == "__main__":
    store = boto3.client("s3", region_name="us-east-1")
    known = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name not in known:
            store.create_bucket(Bucket=name)
