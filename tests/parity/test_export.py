"""The backbone as we write it in the class of transformers: no key lost, the same logits."""

import json
import logging
from pathlib import Path
import warnings

import numpy as np
import pytest
from random_model import model as random_model

from blip3o_jax import trees
from blip3o_jax.systems.blip3o import recordings
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.blip3o.replay import run
from blip3o_jax.verify.recordings import read

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
pytestmark = pytest.mark.torch


def write_backbone(model: verbs.Model, directory: Path) -> None:
  """Language model and vision tower alone, by what writes a whole model, as a plain Qwen2.5-VL."""
  flat = trees.flatten(model.system.params)
  parts = {path: v for path, v in flat.items() if trees.top(path) in ("backbone", "visual")}
  save.write_weights(parts, directory)
  ids = model.tokenizer
  config = released.config_json(model.cfg, eos=ids.im_end, pad=ids.pad)
  for ours in ("n_query", "gen_vision_tower", "gen_hidden_size", "gen_pooling"):
    del config[ours]
  config |= {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "video_token_id": ids.video_pad,
    "vision_start_token_id": ids.vision_start,
    "vision_end_token_id": ids.vision_end,
  }
  (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["miniature", "drawn"])
def test_transformers_loads_the_exported_backbone(tmp_path, check, sizes, caplog, kind):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = (
    verbs.load(TINY, decoder=False)
    if kind == "miniature"
    else random_model(sizes, TINY, paints=False)
  )
  print(model.cfg)
  write_backbone(model, tmp_path)
  loud = logging.getLogger("transformers")
  loud.addHandler(caplog.handler)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      theirs, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
      )
  finally:
    loud.removeHandler(caplog.handler)
  assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
  assert not {key: found for key, found in info.items() if found}
  assert type(theirs.config).model_type == "qwen2_5_vl"

  recorded = read(TINY / "io.safetensors")
  call = recordings.CALLS["und"]
  inputs = {name: recorded[name] for name in call.inputs}
  ours = run(model, "und", inputs, {})
  tokens, mask = (torch.from_numpy(inputs[f"und.{n}"]) for n in ("input_ids", "attention_mask"))
  with torch.no_grad():
    found = theirs.eval()(
      input_ids=tokens,
      attention_mask=mask,
      pixel_values=torch.from_numpy(inputs["und.pixel_values"]),
      image_grid_thw=torch.from_numpy(inputs["und.grid_thw"]),
      mm_token_type_ids=(tokens == model.cfg.image_token).int(),
    ).logits.numpy()
  valid = inputs["und.attention_mask"][..., None] != 0
  expected = np.where(valid, found, 0)
  check(f"exported backbone, {kind}: logits", ours["und.logits"], 3e-6, expected)
  if kind == "miniature":
    check("exported backbone in transformers: und.logits", expected, 3e-6, recorded["und.logits"])
