"""The study of AR2Diff: a causal model continued as a denoiser, and diffusion from nothing (docs/ar2diff-study.md)."""
