"""A pixel decoder from its files: its config, and the loaded network."""

import dataclasses
from pathlib import Path
from typing import Any

from blip3o_jax import files
from blip3o_jax.layers import Dtype
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import memory
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts.network import Network


def load(
  directory: Path, feature_grid: int, dtype: Dtype, shelf: memory.Shelf | None = None
) -> Network:
  """The pixel decoder of a directory, for features of `feature_grid` cells a side.

  The UNet is stored and computes in `dtype`, the autoencoder in float32 (it overflows in half
  precision, spec 5.3).

  Args:
    shelf: of the model that it is a part of.

  Raises:
    FileNotFoundError, ValueError: see `read_config` and `loading.load`.
  """
  cfg = read_config(directory, feature_grid=feature_grid)
  cfg = dataclasses.replace(cfg, unet=dataclasses.replace(cfg.unet, dtype=dtype))
  shelf = shelf or memory.Shelf(memory.Memory())
  return memory.load(painter, cfg, directory, shelf, dtype=dtype, keep=("autoencoder",))


def read_config(directory: str | Path, *, feature_grid: int = 8, **options: Any) -> painter.Config:
  """The config of the decoder that a directory holds, from its three JSON files.

  Args:
    directory: of the model or of its decoder. feature_grid: cells a side; the files do not say.
    options: other fields of `painter.Config`.

  Raises:
    FileNotFoundError: a file is absent. ValueError: it asks for what is not built.
  """
  home = diffusers_files.home(directory)
  diffusers_files.check_classes(layout.Files(home))
  network, latents, schedule = (
    files.read_json(home / name)
    for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
  )
  return painter.Config(
    unet=diffusers_files.unet_config(network),
    autoencoder=diffusers_files.vae_config(latents),
    schedule=diffusers_files.schedule_config(schedule),
    grid=network.get("sample_size", 128),
    feature_grid=feature_grid,
    places=network.get(decoder_files.PLACES, 0),
    **options,
  )
