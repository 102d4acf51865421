"""Losses and targets, a file or a folder a paper, in the paper's own symbols. Needs torch alone."""
