"""config.json and tiny.json: sizes written and read again are the same sizes."""

import dataclasses
import json
from pathlib import Path

import pytest

from blip3o_jax.miniature import sizes
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import sizes as released_sizes

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"


def _written(cfg: blip3o.Config, settings: released.Settings, directory: Path) -> Path:
  directory.mkdir(exist_ok=True)
  config = released.config_json(cfg, eos=1, pad=2)
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "tiny.json").write_text(json.dumps(released.tiny_json(cfg, settings, {"pad": 2})))
  return directory


def _plain(cfg: blip3o.Config) -> blip3o.Config:
  """Without what a file does not say: what is recomputed in training, where new parts start."""
  parts = {
    name: dataclasses.replace(getattr(cfg, name), remat="none")
    for name in ("backbone", "visual", "denoiser")
  }
  tower = dataclasses.replace(cfg.features.tower, remat="none")
  features = dataclasses.replace(cfg.features, tower=tower)
  parts["denoiser"] = dataclasses.replace(parts["denoiser"], gate_init=0.0)
  return dataclasses.replace(cfg, **parts, features=features, slots_std=1.0)


def test_tiny_round_trip(tmp_path):
  cfg, settings = released.read(TINY, "float32")
  assert released.read(_written(cfg, settings, tmp_path), "float32") == (cfg, settings)


@pytest.mark.parametrize("size", ["shapes", "4b", "8b"])
def test_round_trip(size, tmp_path):
  cfg = sizes.blip3o_shapes(7) if size == "shapes" else released_sizes.released(size)
  settings = released.Settings(null="zeros", pixel_scale=1.5, steps=20, min_pixels=4096)
  dtype = cfg.backbone.dtype
  found, again = released.read(_written(cfg, settings, tmp_path), dtype)
  assert again == settings
  wanted = _plain(cfg)
  for field in dataclasses.fields(blip3o.Config):
    if field.name != "latents":  # of the folder diffusion-decoder
      mine, theirs = getattr(found, field.name), getattr(wanted, field.name)
      assert _same_dtype(mine) == _same_dtype(theirs), field.name


def _same_dtype(value: object) -> object:
  """A config with every dtype the same; the release has one for all networks."""
  if not dataclasses.is_dataclass(value):
    return value
  changed = {f.name: _same_dtype(getattr(value, f.name)) for f in dataclasses.fields(value)}
  return dataclasses.replace(
    value, **{k: "float32" if k == "dtype" else v for k, v in changed.items()}
  )  # type: ignore[type-var]


def test_without_tiny_json_the_sizes_are_the_release(tmp_path):
  cfg = released_sizes.released("8b")
  (tmp_path / "config.json").write_text(json.dumps(released.config_json(cfg, eos=1, pad=2)))
  found, settings = released.read(tmp_path, "bfloat16")
  assert (found.denoiser.depth, found.features.tower.dim) == (24, 1792)
  assert settings == released.Settings()


def test_wrong_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    released.read(tmp_path, "float32")
  directory = _written(sizes.blip3o_shapes(), released.Settings(), tmp_path)
  tiny = json.loads((directory / "tiny.json").read_text())
  tiny["blip3o_jax"]["null"] = "grey"
  (directory / "tiny.json").write_text(json.dumps(tiny))
  with pytest.raises(ValueError, match=r"null: 'grey' is not one of"):
    released.read(directory, "float32")
