"""Models of other families, by their config files: which they are, and what is done with them."""

from pathlib import Path
from typing import Any

from blip3o_jax.systems.parts import known
from blip3o_jax.systems.parts import layout

QWEN = (
  "it can be imported (blip3o convert import gives it BLIP3-o's tokens) and trained from "
  "(init_from), but it has no slots, DiT and EVA tower to generate, chat or reconstruct with"
)
UNREAD = "this package reads and trains BLIP3-o on Qwen2.5-VL, and nothing of this model"
# What begins a model_type or architecture, small and without "_" -> the model; the first that fits.
FAMILIES = {
  "bagel": "a BAGEL",
  "qwen25omni": "a Qwen2.5-Omni",
  "qwen3vl": "a Qwen3-VL",
  "qwen2vl": "a Qwen2-VL",
  "qwen3": "a Qwen3, which reads no pictures",
  "qwen2": "a Qwen2 or Qwen2.5, which reads no pictures",
  "janus": "a Janus",
  "multimodality": "a Janus",
  "emu3": "an Emu3",
  "showo": "a Show-o",
}
OURS = "qwen25vl"  # begins as some of these do


def check(files: layout.Files) -> None:
  """Refuses a directory that its JSON files say is of no use here, in one line.

  Raises:
    ValueError: quantised weights, an adapter, or a model of another family, by name.
  """
  values = files.json("config.json")
  where = str(files.directory / "config.json")
  for name in ("", "text_config", "vision_config"):
    group = values.get(name, {}) if name else values
    if isinstance(group, dict):
      known.refuse_quantised(f"{where} {name}".strip(), group)
  if files.has("adapter_config.json") and not values:
    base = files.json("adapter_config.json").get("base_model_name_or_path", "a model")
    raise ValueError(
      f"{files.directory}: an adapter (adapter_config.json) of {base}; merge it into that "
      "model first"
    )
  if (found := _name(files, values)) is not None:
    raise ValueError(f"{files.directory}: {found}; {UNREAD}")


def _name(files: layout.Files, values: dict[str, Any]) -> str | None:
  """Which model of another family it is, with what says so; None for one that is not known."""
  kind = values.get("model_type")
  if is_next(values):
    return f"a BLIP3o-NEXT (config.json has model_type {kind!r} and no vision_config)"
  if files.has("llm_config.json") and files.has("vit_config.json"):
    return "a BAGEL (llm_config.json and vit_config.json)"
  named = [("model_type", kind), ("_class_name", values.get("_class_name"))]
  named += [("architectures", name) for name in values.get("architectures", ())]
  for field, word in named:
    small = str(word).lower().replace("_", "")
    for start, name in FAMILIES.items():
      if small.startswith(start) and not small.startswith(OURS):
        return f"{name} ({field} {word!r})"
  return None


def is_next(values: dict[str, Any]) -> bool:
  """Whether a config.json is that of a BLIP3o-NEXT: by its name a BLIP3-o, but on a Qwen3."""
  names = (values.get("model_type"), *values.get("architectures", ()))
  named = any(str(name).lower().startswith(("blip3oqwen", "blip3o_qwen")) for name in names)
  return named and "vision_config" not in values


def refuse_qwen(directory: Path) -> None:
  """Raises ValueError: says of a plain Qwen2.5-VL what it is, and what can be done with it."""
  raise ValueError(f"{directory}: a plain Qwen2.5-VL (model_type qwen2_5_vl); {QWEN}")
