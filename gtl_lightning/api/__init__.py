"""What people call with a denoiser and texts of their own; no file of the pipeline is read or needed."""
