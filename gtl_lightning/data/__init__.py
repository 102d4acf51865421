"""Snapshot readers, domain splits, tokens and batches."""
