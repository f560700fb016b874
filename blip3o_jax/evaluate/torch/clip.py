"""CLIP as an extractor of pictures and of texts, through transformers and torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_jax.evaluate import extractors
from blip3o_jax.evaluate.extractors import Extractor

NAME = "openai/clip-vit-large-patch14"  # what CLIP scores are usually told of


def open_clip(directory: Path | None) -> tuple[Extractor, Extractor]:
  """CLIP as (of pictures, of texts); both give its projected embeddings.

  Args:
    directory: of a CLIPModel with its processor; None is `NAME`, fetched or of the hub's cache.

  Raises:
    ValueError: no torch, or a directory that is no whole CLIPModel. OSError: what is not there or
      cannot be fetched.
  """
  if directory is not None and not (directory / "config.json").is_file():
    raise FileNotFoundError(f"{directory}: no folder of a CLIPModel: it has no config.json")
  try:
    import torch
  except ImportError:
    raise ValueError(
      f"CLIP is computed by torch, which is not here: {extractors.EXTRA}; or name extractors with "
      "--extractor and --text-extractor MODULE:FUNCTION"
    ) from None
  # Not at the top: transformers takes a second.
  import transformers

  where = str(directory or NAME)
  level = transformers.logging.get_verbosity()
  transformers.logging.set_verbosity_error()  # no table of absent weights: they are an error here
  try:
    read: Any = transformers.CLIPModel.from_pretrained
    loaded, report = read(where, output_loading_info=True)
    # Pillow's, so that the number does not depend on whether torchvision is there.
    processor = transformers.AutoImageProcessor.from_pretrained(where, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
  except OSError as error:
    raise OSError(_absent(where, directory, error)) from None
  except ValueError as error:
    raise ValueError(f"{where}: cannot be read as CLIP: {error}") from None
  finally:
    transformers.logging.set_verbosity(level)
  if lacks := sorted(report["missing_keys"]) or sorted(map(str, report["mismatched_keys"])):
    raise ValueError(
      f"{where}: not a whole CLIPModel: it lacks {lacks[0]} and {len(lacks) - 1} more"
    )
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model: Any = loaded.eval().to(device)
  return _extractors(model, processor, tokenizer, where, directory)


def _extractors(
  model: Any, processor: Any, tokenizer: Any, where: str, directory: Path | None
) -> tuple[Extractor, Extractor]:
  import torch

  most, cut = model.config.text_config.max_position_embeddings, [0]

  def array(found: Any) -> np.ndarray:  # a tensor before transformers 5
    return getattr(found, "pooler_output", found).float().cpu().numpy()

  def pictures(pixels: np.ndarray) -> np.ndarray:
    given = processor(images=list(pixels), return_tensors="pt")["pixel_values"].to(model.device)
    with torch.inference_mode():
      return array(model.get_image_features(pixel_values=given))

  def texts(values: Sequence[str]) -> np.ndarray:
    given = list(values)
    cut[0] += sum(len(ids) > most for ids in tokenizer(given, verbose=False)["input_ids"])
    made = tokenizer(given, padding=True, truncation=True, max_length=most, return_tensors="pt")
    made = {k: made[k].to(model.device) for k in ("input_ids", "attention_mask")}
    with torch.inference_mode():
      return array(model.get_text_features(**made))

  kept = directory or _cached(where)
  mark = extractors.hash_files(kept) if kept else f"revision:{model.config._commit_hash}"
  return (
    Extractor(where, mark, pictures),
    Extractor(where, mark, texts, cut=lambda: cut[0]),
  )


def _cached(name: str) -> Path | None:
  """The folder of a model that was fetched; None where it is not to be found."""
  from huggingface_hub import try_to_load_from_cache

  found = try_to_load_from_cache(name, "config.json")
  return Path(found).parent if isinstance(found, str) else None


def _absent(where: str, directory: Path | None, error: OSError) -> str:
  first = str(error).strip().split("\n")[0]
  if directory is not None:
    return f"{where}: cannot be read as CLIP: {first}"
  return (
    f"{where}: CLIP cannot be fetched ({first}); fetch it elsewhere and name its folder with "
    "--clip DIR, or name extractors with --extractor and --text-extractor MODULE:FUNCTION"
  )
