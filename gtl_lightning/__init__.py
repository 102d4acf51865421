"""Guided transfer learning for discrete diffusion models."""
