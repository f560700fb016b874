"""Config files as people have them: a field is read, or is what is built, or is refused by name.

Each refusal goes through the command, before anything is loaded, and is one line with the status 1.
"""

import json
from pathlib import Path
import shutil
from typing import Any

import checkpoints
from commands import command
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax.data import images
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import vocabulary
from blip3o_jax.systems.parts import features_files
from blip3o_jax.systems.parts import painter_files

TINY = checkpoints.TINY
ROOT = Path(__file__).parents[3]
CONFIG, PICTURES, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer_config.json"
UNET = "diffusion-decoder/unet/config.json"
VAE = "diffusion-decoder/vae/config.json"
SCHEDULE = "diffusion-decoder/scheduler/scheduler_config.json"
INDEX = "diffusion-decoder/model_index.json"
GONE = object()  # a field that is taken away


def link(source: str, target: str) -> None:
  """Copies a file; weights are linked to, for nothing here writes to them."""
  if source.endswith((".safetensors", ".bin")):
    Path(target).symlink_to(source)
  else:
    shutil.copyfile(source, target)


def model(folder: Path) -> Path:
  """A copy of the recorded miniature whose JSON files may be changed."""
  shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("io.*"), copy_function=link)
  return folder


def change(file: Path, **fields: Any) -> None:
  """Sets fields of a JSON file; `group__field` is one of a group, GONE takes one away."""
  values = json.loads(file.read_text()) if file.exists() else {}
  for path, value in fields.items():
    *groups, name = path.split("__")
    place = values
    for group in groups:
      place = place.setdefault(group, {})
    place[name] = value
    if value is GONE:
      del place[name]
  file.write_text(json.dumps(values))


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
  """The one line with which `chat` refuses a model, without having loaded it."""
  capsys.readouterr()
  status = cli.main(["chat", "hello", "--model", str(folder)])
  out, err = capsys.readouterr()
  assert (status, out, len(err.strip().splitlines())) == (1, "", 1), err
  assert err.startswith("blip3o chat: ")
  for word in words:
    assert word in err, err
  return err


YARN = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]}
REFUSED = [
  # The language model.
  (CONFIG, {"rope_scaling": YARN}, ["rope_scaling: type 'yarn' is not built, only 'default'"]),
  (CONFIG, {"rope_scaling__factor": 4.0}, ["rope_scaling: factor 4.0 is no field"]),
  (CONFIG, {"rope_scaling": GONE}, ["lacks mrope_section"]),
  (CONFIG, {"rope_scaling__mrope_section": [2, 2, 2]}, ["does not add up to head_dim / 2 = 8"]),
  (CONFIG, {"hidden_act": "gelu"}, ["hidden_act 'gelu' is not built, only 'silu'"]),
  (CONFIG, {"use_sliding_window": True}, ["use_sliding_window True is not built, only False"]),
  (CONFIG, {"layer_types": ["sliding_attention"] * 3}, ["layer_types", "'sliding_attention'"]),
  (CONFIG, {"attention_bias": False}, ["attention_bias False"]),
  (CONFIG, {"attn_logit_softcapping": 30.0}, ["attn_logit_softcapping 30.0 is no field"]),
  (CONFIG, {"hidden_size": "64"}, ["hidden_size '64': expected a whole number"]),
  (CONFIG, {"text_config": {"hidden_act": "gelu"}}, ["text_config: hidden_act 'gelu'"]),
  # The vision tower.
  (CONFIG, {"vision_config__hidden_act": "quick_gelu"}, ["vision_config: hidden_act 'quick_gelu'"]),
  (CONFIG, {"vision_config__in_channels": 4}, ["in_channels 4 is not built, only 3"]),
  (CONFIG, {"vision_config__deepstack_visual_indexes": [1]}, ["deepstack_visual_indexes [1]"]),
  (CONFIG, {"vision_config__rope_parameters": {"rope_theta": 5e4}}, ["rope_theta 50000.0"]),
  (CONFIG, {"vision_config__fullatt_block_indexes": GONE}, ["(7, 15, 23, 31)", "beyond depth 4"]),
  # What BLIP3-o adds.
  (CONFIG, {"gen_pooling": "pool2d_4"}, ["gen_pooling 'pool2d_4'", "only 'early_pool2d_N'"]),
  (CONFIG, {"gen_pooling": "early_pool2d_2"}, ["gen_pooling's N is 2, but tiny.json", "has 4"]),
  (CONFIG, {"gen_pooling": "all"}, ["gen_pooling 'all' is not built, only 'early_pool2d_N'"]),
  (CONFIG, {"n_query": 8}, ["n_query is 8, but tiny.json beside it has 4"]),
  (CONFIG, {"gen_vision_tower": "siglip2-so400m"}, ["gen_vision_tower 'siglip2-so400m'"]),
  (CONFIG, {"gen_hidden_size": 1152}, ["gen_hidden_size is 1152", "tiny.json beside it has 48"]),
  (CONFIG, {"image_token_id": 400}, ["image_token_id is 400", "<|image_pad|>", "the id 503"]),
  (CONFIG, {"vision_start_token_id": 2}, ["vision_start_token_id is 2", "the id 501"]),
  ("tiny.json", {"dit__norm_eps": 1e-6}, ["dit: norm_eps 1e-06 is not built, only 1e-05"]),
  ("tiny.json", {"dit__rope": "1d"}, ["dit: rope '1d'"]),
  ("tiny.json", {"eva__rope": True}, ["eva: rope True is not built, only False"]),
  ("tiny.json", {"eva__naiveswiglu": True}, ["eva: naiveswiglu True"]),
  ("tiny.json", {"blip3o_jax": {"nul": "zeros"}}, ["blip3o_jax: nul 'zeros' is no field"]),
  # Pictures.
  (PICTURES, {"image_mean": [0.5, 0.5, 0.5]}, ["image_mean [0.5, 0.5, 0.5] is not built"]),
  (PICTURES, {"image_std": [0.5, 0.5, 0.5]}, ["image_std"]),
  (PICTURES, {"do_normalize": False}, ["do_normalize False is not built, only True"]),
  (PICTURES, {"do_resize": False}, ["do_resize False"]),
  (PICTURES, {"rescale_factor": 1 / 127.5}, ["rescale_factor"]),
  (PICTURES, {"resample": 2}, ["resample 2 is not built, only 3"]),
  (PICTURES, {"patch_size": 16}, ["patch_size 16, but the vision tower's is 14"]),
  (PICTURES, {"merge_size": 1}, ["merge_size 1"]),
  (PICTURES, {"size": {"height": 224, "width": 224}}, ["size: height 224 is no field"]),
  (PICTURES, {"min_pixels": 9000, "max_pixels": 4000}, ["min_pixels 9000 and max_pixels 4000"]),
  (PICTURES, {"image_processor_type": "CLIPImageProcessor"}, ["'CLIPImageProcessor'"]),
  (
    "processor_config.json",
    {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 50176}}},
    ["preprocessor_config.json says", "12845056", "processor_config.json", "50176"],
  ),
  # The pixel decoder.
  (SCHEDULE, {"_class_name": "DDIMScheduler"}, ["_class_name 'DDIMScheduler'", "only 'Euler"]),
  (SCHEDULE, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, ["'FlowMatchEulerDiscrete"]),
  (SCHEDULE, {"_class_name": "LCMScheduler"}, ["_class_name 'LCMScheduler'"]),
  (INDEX, {"scheduler": ["diffusers", "LCMScheduler"]}, ["model_index.json: scheduler"]),
  (INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}, ["model_index.json: vae"]),
  (SCHEDULE, {"prediction_type": "v_prediction"}, ["prediction_type 'v_prediction'"]),
  (SCHEDULE, {"beta_schedule": "squaredcos_cap_v2"}, ["beta_schedule 'squaredcos_cap_v2'"]),
  (SCHEDULE, {"timestep_spacing": "odd"}, ["timestep_spacing 'odd'"]),
  (SCHEDULE, {"use_karras_sigmas": True}, ["use_karras_sigmas True"]),
  (SCHEDULE, {"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr True"]),
  (SCHEDULE, {"interpolation_type": "log_linear"}, ["interpolation_type 'log_linear'"]),
  (SCHEDULE, {"shift": 3.0}, ["shift 3.0 is no field"]),
  (UNET, {"_class_name": "UNet2DModel"}, ["_class_name 'UNet2DModel'"]),
  (UNET, {"attention_type": "gated"}, ["attention_type 'gated' is not built, only 'default'"]),
  (UNET, {"mid_block_only_cross_attention": True}, ["mid_block_only_cross_attention True"]),
  (UNET, {"flip_sin_to_cos": False}, ["flip_sin_to_cos False"]),
  (VAE, {"_class_name": "AutoencoderTiny"}, ["_class_name 'AutoencoderTiny'"]),
  (VAE, {"latents_mean": [0.0] * 4}, ["latents_mean [0.0, 0.0, 0.0, 0.0]"]),
  (VAE, {"act_fn": "gelu"}, ["act_fn 'gelu'"]),
  # The tokenizer.
  (TOKENIZER, {"add_bos_token": True}, ["add_bos_token True is not built, only False"]),
  (TOKENIZER, {"clean_up_tokenization_spaces": True}, ["clean_up_tokenization_spaces True"]),
  (TOKENIZER, {"tokenizer_class": "LlamaTokenizer"}, ["tokenizer_class 'LlamaTokenizer'"]),
  # Weights that are quantised, and models of other families.
  (CONFIG, {"quantization_config": {"quant_method": "awq"}}, ["quantised (awq)", "bfloat16"]),
  (UNET, {"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantised (bitsandbytes)"]),
  (CONFIG, {"vision_config": GONE}, ["a BLIP3o-NEXT", "nothing of this model"]),
  (CONFIG, {"model_type": "bagel", "architectures": GONE}, ["a BAGEL", "reads and trains BLIP3-o"]),
  (CONFIG, {"model_type": "qwen3_vl", "architectures": GONE}, ["a Qwen3-VL"]),
]  # fmt: skip


def test_what_is_not_built_is_refused_by_name(tmp_path, capsys):
  """One model whose files are put right after each refusal, so that it is copied once."""
  folder = model(tmp_path / "model")
  for name, fields, words in REFUSED:
    before = (folder / name).read_text() if (folder / name).exists() else None
    change(folder / name, **fields)
    line = refused(folder, capsys, *words)
    if (folder / name).parent.name != "diffusion-decoder" and "model_type" not in fields:
      assert Path(name).name in line or "BLIP3o-NEXT" in line, line
    if before is None:
      (folder / name).unlink()
    else:
      (folder / name).write_text(before)


V5_TEXT = (
  *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
  *("num_key_value_heads", "hidden_act", "rms_norm_eps", "use_sliding_window"),
)


def newer(folder: Path) -> None:
  """The config.json of a model as transformers 5 nests it."""
  values = json.loads((folder / CONFIG).read_text())
  text = {name: values.pop(name) for name in V5_TEXT}
  section = values.pop("rope_scaling")["mrope_section"]
  text |= {
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * 3,
    "model_type": "qwen2_5_vl_text",
    "rope_parameters": {
      "mrope_section": section,
      "rope_theta": values.pop("rope_theta"),
      "rope_type": "default",
    },
    "sliding_window": None,
  }
  values["text_config"] = text
  values["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
  (folder / CONFIG).write_text(json.dumps(values))


ALIKE = [  # changes that leave all sizes as they are
  {"gen_pooling": None},
  {"gen_pooling": GONE, "n_query": None, "gen_hidden_size": None},
  {"sliding_window": None, "max_window_layers": 3, "quantization_config": None},
  {"rope_scaling__type": "mrope", "rope_scaling__rope_type": GONE, "text_config": None},
  {"dtype": "bfloat16", "_attn_implementation": "sdpa", "use_cache": False, "unsloth_fixed": True},
  {"mm_vision_select_layer": -2, "mm_use_im_start_end": False, "n_und_query": 0},
  {"tokenizer_padding_side": "right", "tune_mm_mlp_adapter": False, "use_mm_proj": True},
  {"vision_config__spatial_patch_size": 14, "vision_config__in_chans": 3},
  {"vision_config__" + name: GONE for name in ("patch_size", "window_size", "hidden_act")},
]  # fmt: skip


@pytest.mark.parametrize("fields", ALIKE)
def test_what_changes_no_numbers_is_taken(fields, tmp_path):
  folder = model(tmp_path / "model")
  change(folder / CONFIG, **fields)
  assert released.read(folder, "float32") == released.read(TINY, "float32")


def test_a_model_of_transformers_5_with_nulls_loads_as_the_older_one(tmp_path):
  folder = model(tmp_path / "model")
  newer(folder)
  change(folder / CONFIG, gen_pooling=None)
  change(folder / TOKENIZER, additional_special_tokens=None, bos_token=None)
  change(folder / PICTURES, min_pixels=None, max_pixels=None, size__longest_edge=50176)
  change(folder / PICTURES, size__shortest_edge=3136, do_center_crop=None)
  found = systems.SYSTEMS["blip3o"].load(folder, dtype="float32")
  assert found.cfg == released.read(TINY, "float32")[0]
  tokens = found._batches.asking(["what is it?"], [Image.new("RGB", (336, 224))])["tokens"]
  assert int((tokens == found.cfg.image_token).sum()) == 12 * 18 // 4  # as transformers 5.24


LIMITS = [  # (fields, or GONE for no file; limits; grid of a picture of 336 x 224)
  ({PICTURES: {"size": {"shortest_edge": 3136, "longest_edge": 50176}}}, (3136, 50176), (12, 18)),
  ({"processor_config.json": {"image_processor": {"size": {"longest_edge": 50176}}}},
   (3136, 50176), (12, 18)),
  ({PICTURES: {"max_pixels": 30000, "size": {"longest_edge": 50176}}}, (3136, 30000), (10, 14)),
  ({PICTURES: {"size": {"min_pixels": 3136, "max_pixels": 50176}}}, (3136, 50176), (12, 18)),
  ({PICTURES: {"min_pixels": None, "max_pixels": 50176}}, (3136, 50176), (12, 18)),
  ({PICTURES: {"min_pixels": 3136, "max_pixels": None}}, (3136, 1003520), (16, 24)),
  ({PICTURES: {"min_pixels": 3136, "max_pixels": 12845056},
    "processor_config.json": {"processor_class": "Qwen2_5_VLProcessor"}},
   (3136, 12845056), (16, 24)),
  ({}, (3136, 12845056), (16, 24)),
]  # fmt: skip


@pytest.mark.parametrize(("written", "limits", "grid"), LIMITS)
def test_limits_of_pictures(written, limits, grid, tmp_path):
  for name in ("config.json", "tiny.json"):
    shutil.copy(TINY / name, tmp_path / name)
  for name, values in written.items():
    (tmp_path / name).write_text(json.dumps(values))
  settings = released.read(tmp_path, "float32")[1]
  assert (settings.min_pixels, settings.max_pixels) == limits
  _, found = images.qwen_image(
    Image.new("RGB", (336, 224)), min_pixels=limits[0], max_pixels=settings.max_pixels
  )
  assert found == grid


def test_a_tied_head_is_said_in_either_place(tmp_path):
  """transformers 4.52 to 4.57 write a 3B's with the language model's fields alone."""
  folder = checkpoints.plain_qwen(tmp_path / "qwen", tied=True)
  newer(folder)
  change(folder / CONFIG, tie_word_embeddings=GONE, text_config__tie_word_embeddings=True)
  assert command("convert")("import", "--source", folder, "--output", tmp_path / "out") == 0
  assert released.read(tmp_path / "out", "float32")[0].backbone.tie_embeddings


def test_a_class_s_defaults_hold(tmp_path):
  """transformers 4.49 writes five fields of a 7B's vision tower, and leaves its vocabulary out."""
  small = {"hidden_size": 1280, "in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2}
  values = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": small | {"model_type": "qwen2_5_vl"},
  }
  (tmp_path / CONFIG).write_text(json.dumps(values))
  cfg = released.read(tmp_path, "float32")[0]
  tower, text = cfg.visual, cfg.backbone
  assert (tower.depth, tower.heads, tower.mlp_dim, tower.out_dim) == (32, 16, 3420, 3584)
  assert (tower.window_size, tower.full_layers) == (112, (7, 15, 23, 31))
  assert (text.vocab_size, text.rope_theta, text.head_dim) == (152064, 1e6, 128)


def test_a_default_that_the_tensors_contradict(tmp_path, capsys):
  folder = model(tmp_path / "model")
  change(folder / CONFIG, vocab_size=GONE)
  assert cli.main(["chat", "hello", "--model", str(folder)]) == 1
  assert "vocab_size (left out, its class's default) is 152064, but" in capsys.readouterr().err


def test_every_command_says_which_model_it_is(tmp_path, capsys):
  """A plain Qwen2.5-VL has no verb, but can be converted and inspected; a BAGEL nothing."""
  qwen = checkpoints.plain_qwen(tmp_path / "qwen")
  Image.new("RGB", (56, 56)).save(picture := tmp_path / "picture.png")
  verbs = {
    "generate": ["a cat"],
    "chat": ["hello"],
    "reconstruct": [str(picture)],
  }
  for verb, args in verbs.items():
    assert cli.main([verb, *args, "--model", str(qwen)]) == 1
    line = capsys.readouterr().err
    assert "a plain Qwen2.5-VL" in line, line
    assert "can be imported" in line, line
    assert line.count("\n") == 1, line
  assert command("verify")("--model", qwen, "--recorded", TINY / "io.safetensors") == 1
  assert "a plain Qwen2.5-VL" in capsys.readouterr().err
  assert command("inspect_checkpoint")(qwen) == 0
  (tmp_path / "bagel").mkdir()
  for name in ("llm_config.json", "vit_config.json"):
    (tmp_path / "bagel" / name).write_text("{}")
  calls = [
    command("inspect_checkpoint"),
    lambda d: command("convert")("import", "--source", d, "--output", tmp_path / "no"),
    lambda d: command("verify")("--model", d, "--recorded", TINY / "io.safetensors"),
    *(lambda d, v=v, a=a: cli.main([v, *a, "--model", d]) for v, a in verbs.items()),
  ]
  for call in calls:
    capsys.readouterr()
    assert call(str(tmp_path / "bagel")) == 1
    line = capsys.readouterr().err
    assert "a BAGEL (llm_config.json and vit_config.json)" in line, line
    assert line.count("\n") == 1, line
  assert not (tmp_path / "no").exists()


def test_training_and_its_plan_say_which_model_they_are_given(tmp_path, capsys):
  (tmp_path / CONFIG).write_text('{"model_type": "bagel"}')
  config = [f"--config={ROOT}/configs/shapes_tower_train.py"]
  config.append(f"--config.init_from=('{tmp_path}',)")
  train = ["train", *config, "--workdir", str(tmp_path / "run")]
  for call in (lambda: cli.main(train), lambda: command("plan")(*config, "--topology=here")):
    capsys.readouterr()
    assert call() == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "a BAGEL (model_type 'bagel')" in line, line
  assert not (tmp_path / "run").exists()


def test_what_import_refuses_before_it_writes(tmp_path, capsys):
  folder = model(tmp_path / "model")
  said = (
    ({"image_token_id": 400}, "image_token_id is 400, but <|image_pad|>"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
    ({"rope_scaling": YARN}, "type 'yarn' is not built"),
  )
  for fields, words in said:
    shutil.copy(TINY / CONFIG, folder / CONFIG)
    change(folder / CONFIG, **fields)
    assert command("convert")("import", "--source", folder, "--output", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert words in err, err
    assert err.splitlines()[-1].startswith("blip3o convert: "), err
  assert not (tmp_path / "out").exists()


def test_an_adapter_is_no_model(tmp_path, capsys):
  (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
  refused(tmp_path, capsys, "an adapter (adapter_config.json) of org/base", "merge it")


def test_a_tower_whose_norms_stand_elsewhere(tmp_path, capsys):
  shutil.copytree(TINY / features_files.FOLDER, tower := tmp_path / "tower", copy_function=link)
  change(tower / CONFIG, vision_cfg__postnorm=GONE)
  assert command("inspect_checkpoint")(tower) == 1
  assert "postnorm False where the field is absent is not built" in capsys.readouterr().err


def test_fields_of_other_schedulers_are_left_alone(tmp_path):
  """The released file is one of SDXL's, with fields that Euler's scheduler does not read."""
  folder = model(tmp_path / "model")
  change(folder / SCHEDULE, clip_sample=False, sample_max_value=1.0, set_alpha_to_one=False)
  change(folder / SCHEDULE, skip_prk_steps=True, sigma_max=None, final_sigmas_type=GONE)
  change(folder / UNET, upcast_attention=None, only_cross_attention=GONE, _name_or_path="unet")
  change(folder / VAE, _name_or_path="../sdxl-vae/", latents_mean=GONE)
  assert painter_files.read_config(folder) == painter_files.read_config(TINY)


def test_new_tokens_where_a_list_is_null(tmp_path):
  for name, found in (("additional_special_tokens", None), ("extra_special_tokens", ["<a>"])):
    folder = checkpoints.plain_qwen(tmp_path / name)
    change(folder / CONFIG, text_config=None)
    change(folder / TOKENIZER, additional_special_tokens=GONE)
    change(folder / TOKENIZER, added_tokens_decoder=None, **{name: found})
    vocabulary.Change(600, 510, 507, vocabulary.ADDED).write(folder)
    told = files.read_json(folder / TOKENIZER)
    assert told[name] == [*(found or []), *vocabulary.ADDED]
    assert sorted(told["added_tokens_decoder"]) == ["507", "508", "509"]
    assert files.read_json(folder / CONFIG)["vocab_size"] == 510
    assert "text_config" in json.loads((folder / CONFIG).read_text())  # as it was, null and all
