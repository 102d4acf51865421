"""Prefect: where and when the stages of dvc.yaml run."""
