"""Distributions that are known exactly: what samplers, losses and metrics are proved by."""
