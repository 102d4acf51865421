"""The study on Markov chains, where everything is known exactly (docs/markov.md)."""
