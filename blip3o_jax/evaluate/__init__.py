"""Scorers that look at outputs only."""
