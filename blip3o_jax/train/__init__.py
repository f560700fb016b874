"""Training: state, step, loop, checkpoints, metrics. Takes a system as an argument, names none."""
