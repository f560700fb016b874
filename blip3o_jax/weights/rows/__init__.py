"""The weight tables of the networks, one a file."""
