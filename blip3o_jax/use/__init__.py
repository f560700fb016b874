"""What a person uses a model through: `blip3o_jax.load` and what it returns."""
