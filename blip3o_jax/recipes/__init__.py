"""The released stages as configs, one file a system."""
