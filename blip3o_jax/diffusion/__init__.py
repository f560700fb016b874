"""Diffusion mathematics over any function (x, t) -> prediction. Knows no network."""
