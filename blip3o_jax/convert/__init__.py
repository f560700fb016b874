"""Conversion: PyTorch checkpoints to orbax directories and back, and what is in either."""
