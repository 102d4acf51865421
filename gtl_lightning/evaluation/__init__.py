"""Metrics: likelihoods, MAUVE, judges, diversity, memorisation, the advisor."""
