"""Studies with a grid of their own, each with its parameters, its stages and its page."""
