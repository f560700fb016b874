"""Where records come from, one layout a file."""
