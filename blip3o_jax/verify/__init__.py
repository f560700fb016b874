"""Recorded inputs and outputs of a checkpoint: read, replayed through our model, and compared."""
