"""LightningModules, one per trainable component."""
