"""Timing of sampling and training: `gtl bench`."""
