"""Released PyTorch weights: declarative tables, read in both directions."""
