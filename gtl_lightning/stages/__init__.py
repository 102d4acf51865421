"""The stages of dvc.yaml and the commands beside them, nothing else: each reads paths, calls below and writes paths.

`gtl COMMAND`, the `cmd` in dvc.yaml and the flows' tasks all end in one function here.
"""
