"""Denoisers of other people as sources: one file a kind, each by the classes of transformers or by one written here.

No code that comes with a model is run, and nothing of a model is changed. What is asked of one is in `model`.
"""
