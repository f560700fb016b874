"""Recorded inputs and outputs of a checkpoint: their names, and their replay through our model."""
