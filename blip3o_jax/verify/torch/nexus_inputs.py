"""Inputs to record Nexus-Gen with, of the sizes that its files tell, and a photo's pictures."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np
from PIL import Image
import torch
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as processing

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import recordings
from blip3o_jax.systems.nexus_gen.prompts import SPECIAL
from blip3o_jax.verify.torch import nexus_decoders as decoders
from blip3o_jax.verify.torch.checkpoint import Checkpoint

Arrays = dict[str, np.ndarray]
CAPTION = "Generate an image according to the following description: A red bird on a branch."
CHANGE, QUESTION = " Make the sky red.", "Please give a brief description of the image."
MAX_PIXELS = 262_640
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# Latent cells of what is painted, and patches of the pictures that are shown.
SMALL, LARGE = (8, 12), (16, 10)
PICTURE, OTHER, SOURCE = (8, 10), (6, 8), (4, 6)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a model: slots of a picture, grids of targets and references, patches, widths.

  Attributes:
    side: merged cells a side of a target.
  """

  slots: int
  side: int
  target: tuple[int, int]
  reference: tuple[int, int]
  patch: int
  merge: int
  frames: int
  hidden: int

  @classmethod
  def of(cls, checkpoint: Checkpoint) -> "Sizes":
    """What config.json and tiny.json say, else the release's."""
    vision, tiny = checkpoint.config["vision_config"], checkpoint.tiny
    merge = vision.get("spatial_merge_size", 2)
    target = tiny.get("target_grid", [1, 18, 18])[1]
    reference = tiny.get("reference_grid", [1, 36, 36])[1]
    text = checkpoint.config.get("text_config", checkpoint.config)
    return cls(
      slots=tiny.get("slots", 81),
      side=target // merge,
      target=(target, target),
      reference=(reference, reference),
      patch=vision.get("patch_size", 14),
      merge=merge,
      frames=vision.get("temporal_patch_size", 2),
      hidden=text["hidden_size"],
    )


def inputs(checkpoint: Checkpoint, rng: np.random.Generator) -> Arrays:
  """Random inputs, in prompts of the released templates."""
  sizes = Sizes.of(checkpoint)

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

  width = 3 * sizes.frames * sizes.patch**2
  out = _language(checkpoint, sizes)
  for name in [n for n in out if n.endswith(".image_grid_thw")]:
    prefix = name.partition(".")[0]
    grids = out[name][:-1] if prefix == "single" else out[name]
    pixels = "source_pixel_values" if prefix == "single" else "pixel_values"
    out[f"{prefix}.{pixels}"] = normal(int(grids.prod(1).sum()), width)
  noise = rng.integers(0, 256, (10, 14, 3), np.uint8)  # a photo's values are near their neighbours'
  photo = np.asarray(Image.fromarray(noise).resize((420, 300), Image.Resampling.BICUBIC))
  rows = np.sort(rng.choice(sizes.reference[0] ** 2, 57, replace=False))
  out |= {"pre.photo_u8": photo, "pre.reference_rows": rows}
  out["pre.input_max_pixels"] = np.array(MAX_PIXELS)
  # In place of vectors that the model predicts, where it starts no picture by itself.
  drawn = (1, sizes.slots, sizes.hidden)
  out |= {f"{name}.image_vectors": normal(*drawn) for name in ("gen", "edit")}
  return out | decoders.inputs(checkpoint, rng, (SMALL, LARGE))


def _language(checkpoint: Checkpoint, sizes: Sizes) -> Arrays:
  """Prompts, a training batch, and the grids of their pictures."""
  ids = Tokenizer.load(checkpoint.path, SPECIAL)
  line = ids.encode("\n")

  def message(role: str, *content: Sequence[int]) -> list[int]:
    middle = [token for part in content for token in part]
    return [ids.im_start, *ids.encode(f"{role}\n"), *middle, ids.im_end, *line]

  def picture(grid: tuple[int, int]) -> list[int]:
    count = grid[0] * grid[1] // sizes.merge**2
    return [ids.vision_start, *[ids.image_pad] * count, ids.vision_end]

  def prompt(*content: Sequence[int]) -> list[int]:
    system = message("system", ids.encode("You are a helpful assistant."))
    reply = [ids.im_start, *ids.encode("assistant\n")]
    return [*system, *message("user", *content), *reply]

  gen = prompt(ids.encode(CAPTION))
  edit = prompt(picture(PICTURE), ids.encode(CHANGE))
  und = prompt(picture(OTHER), ids.encode(QUESTION))
  drawn = picture(sizes.target)
  single = prompt(picture(SOURCE), ids.encode(CHANGE))
  single += [*ids.encode("Here is the image: "), *drawn, ids.im_end]
  answers = (
    [*ids.encode("Here is an image based on the description: "), *drawn],
    [*ids.encode("Here is the image: "), *drawn],
    ids.encode("A quiet place."),
  )
  rows, labels = [], []
  for asked, answer in zip((gen, edit, und), answers, strict=True):
    rows.append([*asked, *answer, ids.im_end, *line])
    labels.append([-100] * len(asked) + [*answer, ids.im_end] + [-100] * len(line))
  most = max(map(len, rows))

  def padded(values: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    return np.array([[*row, *[fill] * (most - len(row))] for row in values], np.int64)

  def grids(*values: tuple[int, int]) -> np.ndarray:
    return np.array([[1, *grid] for grid in values], np.int64)

  return {
    "gen.input_ids": np.array([gen]),
    "forced.input_ids": np.array([[*gen, ids.vision_start]]),
    "edit.input_ids": np.array([edit]),
    "edit.image_grid_thw": grids(PICTURE),
    "und.input_ids": np.array([und]),
    "und.image_grid_thw": grids(OTHER),
    "single.input_ids": np.array([single]),
    "single.image_grid_thw": grids(SOURCE, sizes.target),
    "train.input_ids": padded(rows, ids.pad),
    "train.labels": padded(labels, -100),
    "train.attention_mask": padded([[1] * len(row) for row in rows], 0),
    "train.image_grid_thw": grids(sizes.target, PICTURE, sizes.target, OTHER),
  }


# Pictures ----------------------------------------------------------------------------------------


def patches(checkpoint: Checkpoint, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """uint8[H, W, 3] as rows of patches in merge-block order, and its grid (1, 3)."""
  sizes = Sizes.of(checkpoint)
  p, m = sizes.patch, sizes.merge
  x = (pixels.astype(np.float32) / np.float32(255) - MEAN) / STD
  h, w = (side // p for side in x.shape[:2])
  cells = x.reshape(h // m, m, p, w // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
  flat = np.broadcast_to(cells[..., None, :, :], (*cells.shape[:5], sizes.frames, p, p))
  return flat.reshape(h * w, -1), np.array([[1, h, w]])


def pictures(checkpoint: Checkpoint, x: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """What is made of the photo, added to `x`, or of what was made of it; patches of both."""
  made: Arrays = {}
  if recordings.PHOTO in x:
    made = _of_photo(checkpoint, x[recordings.PHOTO].numpy(), int(x["pre.input_max_pixels"]))
    for name, value in made.items():
      x[f"pre.{name}"] = torch.from_numpy(value)  # type: ignore[index]
  target, grid = patches(checkpoint, x["pre.target_u8"].numpy())
  reference, large = patches(checkpoint, x["pre.reference_bilinear_u8"].numpy())
  out = {
    **made,
    "target_pixel_values": target,
    "target_grid_thw": grid,
    "reference_pixel_rows": reference[x["pre.reference_rows"].numpy()],
    "reference_grid_thw": large,
  }
  return {f"pre.{name}": torch.from_numpy(np.array(value)) for name, value in out.items()}


def _of_photo(checkpoint: Checkpoint, photo: np.ndarray, most: int) -> Arrays:
  sizes, image = Sizes.of(checkpoint), Image.fromarray(photo)
  bicubic, bilinear = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
  small, large = (grid[0] * sizes.patch for grid in (sizes.target, sizes.reference))
  factor = sizes.patch * sizes.merge
  height, width, _ = photo.shape
  height, width = processing.smart_resize(height, width, factor=factor, max_pixels=most)
  return {
    "target_u8": _resized(image, small, small, bicubic),
    "reference_bilinear_u8": _resized(image, large, large, bilinear),
    "reference_bicubic_u8": _resized(image, large, large, bicubic),
    "input_u8": _resized(image, width, height, bicubic),
    "generation_condition_u8": _covered(image, small, bilinear),
    "decoder_target_u8": _covered(image, 512, bilinear),
  }


def _resized(image: Image.Image, width: int, height: int, kernel: Image.Resampling) -> np.ndarray:
  """The width first, then the height, whatever the version of Pillow would choose."""
  return np.array(image.resize((width, image.height), kernel).resize((width, height), kernel))


def _covered(image: Image.Image, side: int, kernel: Image.Resampling) -> np.ndarray:
  scale = side / min(image.size)
  width, height = (round(length * scale) for length in image.size)
  left, top = (round((length - side) / 2) for length in (width, height))
  return _resized(image, width, height, kernel)[top : top + side, left : left + side]
