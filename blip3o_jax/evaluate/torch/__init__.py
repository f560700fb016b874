"""What is measured through libraries of torch, which only the extra `metrics` brings."""
