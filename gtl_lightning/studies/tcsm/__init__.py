"""The study of target concrete score matching (docs/tcsm.md)."""
