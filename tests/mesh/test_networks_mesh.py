"""Each network on a mesh of all three axes: output and gradients are those of one device.

Convolutions are the exception: XLA gives wrong gradients there, so the pixel decoder refuses such
a mesh. When `test_convolutions_are_still_wrong` fails, JAX has mended it and the refusal can go.
"""

import networks_worker
import pytest
import simulated

from blip3o_jax.miniature import sizes
from blip3o_jax.systems import SYSTEMS


def errors(*names: str) -> dict[str, float]:
  """Largest relative error of each network, measured by a process of 8 simulated devices."""
  return simulated.finish(simulated.start(networks_worker.__file__, 8, *names))


def test_transformers_on_three_axes_are_those_of_one_device():
  names = ("decoder_lm", "qwen_vision", "next_dit", "eva_vit")
  found = errors(*names)
  assert set(found) == set(names)
  assert max(found.values()) < 1e-4, found


def test_convolutions_are_still_wrong():
  assert errors("autoencoder")["autoencoder"] > 0.1


def test_the_pixel_decoder_refuses_three_axes():
  mesh, model = dict(replica=2, fsdp=2, tensor=2), sizes.pixels_shapes()
  with pytest.raises(ValueError, match="replica 2 x fsdp 2 x tensor 2 gives wrong gradients"):
    SYSTEMS["pixels"].check(model, ["unet/conv_in/kernel"], mesh)
  SYSTEMS["pixels"].check(model, ["unet/conv_in/kernel"], dict(replica=2, fsdp=4, tensor=1))
  SYSTEMS["blip3o"].check(sizes.blip3o_shapes(), ["slots/embedding"], mesh)
