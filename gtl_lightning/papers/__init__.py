"""Losses and targets, one file a paper, in the paper's own symbols. Needs torch alone."""
