"""BLIP3-o: a frozen language model that reads images, and a generator that makes them."""

from blip3o_jax.systems.blip3o.model import Blip3o as Blip3o
from blip3o_jax.systems.blip3o.model import Config as Config
from blip3o_jax.systems.blip3o.model import Loss as Loss
from blip3o_jax.systems.blip3o.model import Part as Part
from blip3o_jax.systems.blip3o.model import batch_spec as batch_spec
from blip3o_jax.systems.blip3o.model import build as build
from blip3o_jax.systems.blip3o.model import check as check
from blip3o_jax.systems.blip3o.model import flops as flops
from blip3o_jax.systems.blip3o.model import load_params as load_params
from blip3o_jax.systems.blip3o.verbs import load as load
