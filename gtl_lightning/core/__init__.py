"""Masked diffusion itself: noise, laws of the next token, guidance, samplers. Needs torch alone."""
