"""Records become batches of numpy arrays: sources, prompts, transforms, pipeline."""
