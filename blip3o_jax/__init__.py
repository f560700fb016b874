"""BLIP3-o in JAX and Flax: a unified multimodal model that reads images and makes them."""

__version__ = "0.1.0"
