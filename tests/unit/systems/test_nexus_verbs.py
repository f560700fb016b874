"""The verbs of a loaded Nexus-Gen, from Python and from the command."""

from collections.abc import Callable
import dataclasses
import json
import logging as std_logging
from pathlib import Path
import shutil
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.data.text import chat
from blip3o_jax.systems.nexus_gen import batches
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.nexus_gen.how import How
from blip3o_jax.systems.nexus_gen.replay import with_null
from blip3o_jax.systems.parts import answer_files
from blip3o_jax.weights.safetensors import Tensors
from blip3o_jax.weights.safetensors import save

TINY = Path(__file__).parents[2] / "data" / "tiny-nexus-gen"
RECORDED = Tensors(TINY / "io.safetensors")
CAPTION = "A red bird sits on a snowy branch, 3 berries near it."
DRAW = "Generate an image according to the following description: "
SMALL: dict[str, Any] = {"size": 16, "steps": 2, "scale": 2.0}  # one patch of the transformer
GREY = Image.new("RGB", (56, 84), (90, 120, 30))


@pytest.fixture(scope="module")
def bare() -> verbs.Model:
  """As the directory is, without a null condition."""
  return verbs.load(TINY)


@pytest.fixture(scope="module")
def model(bare: verbs.Model) -> verbs.Model:
  pooled, context = (RECORDED.read(n)[0] for n in ("cond.pooled", "cond.negative_context"))
  return with_null(bare, pooled, context)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
  """The miniature with a null condition beside it."""
  folder = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("nexus") / "model"))
  null = {"pooled": RECORDED.read("cond.pooled")[0]}
  null["context"] = RECORDED.read("cond.negative_context")[0]
  save(null, folder / "null_condition.safetensors", {"format": "pt"})
  return folder


@pytest.fixture
def warned(caplog, monkeypatch) -> Callable[[], list[str]]:
  """What was said on stderr."""
  monkeypatch.setattr(std_logging.getLogger("absl"), "propagate", True)
  caplog.set_level(std_logging.WARNING, logger="absl")
  assert logging.get_absl_logger()
  return lambda: [record.getMessage() for record in caplog.records]


def picture_of(prefix: str) -> Image.Image:
  """A picture whose patches are so many as the recorded one's."""
  _, h, w = RECORDED.read(f"{prefix}.image_grid_thw")[0].tolist()
  return Image.new("RGB", (14 * w, 14 * h), (200, 40, 90))


def ids_of(rows: dict[str, Any], row: int = 0) -> list[int]:
  return rows["tokens"][row][rows["segments"][row] > 0].tolist()


def test_prompts_are_the_recorded_ones(model):
  ask = model._batches
  found = ask.drawing([CAPTION], [[]], "en", answered=False)
  assert ids_of(found) == RECORDED.read("gen.input_ids")[0].tolist()
  found = ask.drawing(["Add a pair of sunglasses."], [[picture_of("edit")]], "en", answered=False)
  assert ids_of(found) == RECORDED.read("edit.input_ids")[0].tolist()
  marked = [f"{chat.MARK} Add a pair of sunglasses."]
  found = ask.drawing(marked, [[picture_of("edit")]], "en", answered=False)
  assert ids_of(found) == RECORDED.read("edit.input_ids")[0].tolist()
  question = f"{chat.MARK}Please give a brief description of the image."
  found = ask.asking([question], [[picture_of("und")]])
  assert ids_of(found) == RECORDED.read("und.input_ids")[0].tolist()
  # Without a mark as in training, with a line's end after the picture.
  plain = ask.asking([question.removeprefix(chat.MARK)], [[picture_of("und")]])
  assert len(ids_of(plain)) == len(ids_of(found)) + 1


def test_pictures_stand_where_the_settings_say(model):
  settings = dataclasses.replace(model.settings, pictures="after")
  ask = batches.Batches(model.cfg, settings, model.tokenizer)
  given, shown = "Add a hat.", [picture_of("edit")]
  found = ids_of(ask.drawing([given], [shown], "en"))
  assert found == ids_of(model._batches.drawing([f"{given} {chat.MARK}"], [shown], "en"))
  assert found != ids_of(model._batches.drawing([given], [shown], "en"))
  marked = f"{chat.MARK}{given}"
  assert ids_of(ask.drawing([marked], [shown], "en")) == ids_of(
    model._batches.drawing([marked], [shown], "en")
  )


def test_chinese_templates(model):
  rows = [model._batches.drawing(["一只猫"], [[]], language) for language in ("en", "zh")]
  texts = [model.tokenizer.decode(ids_of(found)) for found in rows]
  assert DRAW in texts[0]
  assert "Here is an image based on the description: " in texts[0]
  assert "根据以下描述生成一张图像：一只猫" in texts[1]
  assert "这是根据您的描述生成的图像：" in texts[1]
  edited = model._batches.drawing(["变红"], [[GREY]], "zh")
  assert "以下为编辑后的图像：" in model.tokenizer.decode(ids_of(edited))


@pytest.mark.slow
def test_the_models_own_words_are_the_recorded_answer(model):
  """The loop of the release, in float32 next to its vectors; the template's pass has others."""
  wanted = RECORDED.read("gen.image_vectors")
  own, template = (model._vectors([CAPTION], [None], How(words=w)) for w in ("own", "template"))
  np.testing.assert_allclose(own, wanted, atol=2e-5)
  assert np.abs(template - wanted).max() > 0.1


def test_generate(model):
  found = model.generate([CAPTION, "a cat"], [3, 3], **SMALL)
  assert (found.shape, found.dtype) == ((2, 16, 16, 3), np.uint8)
  assert np.abs(found[0].astype(int) - found[1]).max() > 1
  again = model.generate(["a cat", CAPTION], [3, 2**64 - 1], **SMALL)
  np.testing.assert_array_equal(again[0], found[1])
  assert np.abs(again[1].astype(int) - found[0]).max() > 1


def test_edit(model):
  shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 56, 3), np.uint8))
  ask = (["make it red"] * 2, [1, 1])
  beside = model.edit([GREY, shown], *ask, **SMALL)
  assert beside.shape == (2, 16, 16, 3)
  assert np.abs(beside[0].astype(int) - beside[1]).max() > 1
  alone = model.edit([GREY, shown], *ask, decoder="generator", **SMALL)
  assert np.abs(alone.astype(int) - beside).max() > 1
  drawn = model.generate(ask[0], ask[1], images=[GREY, shown], **SMALL)
  np.testing.assert_array_equal(drawn, alone)


def test_reconstruct(model):
  found = model.reconstruct([GREY, np.zeros((60, 90, 3), np.uint8)], [0, 0], **SMALL)
  assert found.shape == (2, 16, 16, 3)
  assert np.abs(found[0].astype(int) - found[1]).max() > 1


@pytest.mark.slow
def test_chat(model):
  """Of two at once: words with a picture in the place of its mark, beside what was shown or not."""
  asked = [f"{chat.MARK}What is it?", DRAW + CAPTION]
  shown, drawn = model.chat(asked, [GREY, None], length=12, **SMALL)
  assert all(isinstance(a, str) or a[0].count(chat.MARK) == len(a[1]) for a in (shown, drawn))
  words, pictures = drawn
  assert words.count(chat.MARK) == len(pictures) == 1
  assert words.startswith(json.loads((TINY / "prompts.json").read_text())["gen"]["answer"][:3])
  assert pictures[0].shape == (16, 16, 3)


def test_sizes_are_multiples(model, warned):
  assert How(size=(500, 300)).sides(512, 16) == (512, 304)
  assert warned() == ["size 500 x 300 becomes 512 x 304: sides are multiples of 16"]
  assert How().sides(500, 16) == (512, 512)
  assert How(size=64).sides(512, 16) == (64, 64)


WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
  ("generate", (["a"], [0]), {"sampler": "heun"}, "cannot generate with the option sampler; it"),
  ("generate", (["a"], [0]), {"pixel_steps": 3}, "cannot generate with the option pixel_steps"),
  ("generate", (["a"], [0]), {"decoder": "editor"}, "cannot generate with the option decoder"),
  ("generate", (["a"], [0]), {"language": "fr"}, "language 'fr': expected one of en, zh"),
  ("generate", (["a"], [0]), {"words": "mine"}, "words 'mine': expected one of template, own"),
  ("generate", (["a"], [0]), {"size": 0}, "size 0: expected a height and a width"),
  ("generate", (["a"], [0]), {"size": (16, 2.5)}, "size (16, 2.5): expected a height"),
  ("generate", (["a"], [0]), {"steps": -1}, "steps -1: expected a whole number, 0 to 1000"),
  ("generate", (["a", "b"], [0]), {}, "2 prompts but 1 seeds"),
  ("generate", ("a", [0]), {}, "expected a list of prompts"),
  ("edit", ([GREY], [" "], [0]), {}, "instruction 1 is empty"),
  ("edit", ([GREY], [f"{chat.MARK} a {chat.MARK}"], [0]), {}, "instruction 1 has 2 marks <image>"),
  ("edit", ([None], ["a"], [0]), {}, "image 1: expected a picture, got None"),
  ("edit", ([GREY], ["a", "b"], [0, 1]), {}, "2 instructions but 1 images"),
  ("edit", ([GREY], ["a"], [0]), {"decoder": "x"}, "decoder 'x': expected one of generator, edit"),
  ("chat", (["a"], []), {}, "1 questions but 0 images"),
  ("chat", (["a"], GREY), {}, "images: expected a list of pictures"),
  ("chat", ([f"{chat.MARK} a"], [None]), {}, "question 1 has 1 marks <image> for 0 pictures"),
  ("chat", (["a"], [None]), {"length": 0}, "length 0: expected a whole number, 1 to"),
  ("chat", (["a"], [None]), {"language": "zh"}, "cannot chat with the option language"),
  ("reconstruct", ([GREY], []), {}, "1 images but 0 seeds"),
  ("reconstruct", ([GREY], [0]), {"max_pixels": 784}, "cannot reconstruct with the option max"),
]


@pytest.mark.parametrize(("verb", "arguments", "options", "message"), WRONG)
def test_wrong_input(model, verb, arguments, options, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    getattr(model, verb)(*arguments, **options)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_without_a_null_condition_nothing_is_painted(bare):
  for call in (
    lambda: bare.generate(["a"], [0]),
    lambda: bare.edit([GREY], ["a"], [0]),
    lambda: bare.reconstruct([GREY], [0]),
  ):
    with pytest.raises(ValueError, match=r"no null condition .* Make it once from FLUX\.1-dev"):
      call()


def test_generation_config(tmp_path):
  file = tmp_path / answer_files.FILE
  assert answer_files.read(tmp_path) is None

  def read(**values: Any) -> answer_files.Choice:
    file.write_text(json.dumps(values))
    found = answer_files.read(tmp_path)
    assert found is not None
    return found

  cold = read(do_sample=True, temperature=1e-6, repetition_penalty=1.05, eos_token_id=[7, 8])
  assert (cold.temperature, cold.limits.penalty, cold.ends) == (0, 1.05, (7, 8))
  warm = read(do_sample=True, temperature=0.7, top_p=0.9, top_k=None, eos_token_id=7)
  assert (warm.temperature, warm.limits.top_p, warm.limits.top_k) == (0.7, 0.9, 50)
  assert warm.ends == (7,)
  greedy = read(temperature=0.7, top_k=3, transformers_version="4.49.0")
  assert (greedy.temperature, greedy.limits.top_k, greedy.limits.penalty) == (0, 0, 1)
  for values, message in (
    ({"num_beams": 4}, "num_beams 4 is not built"),
    ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size 3 is not built"),
    ({"suppress_tokens": [1]}, "suppress_tokens"),
    ({"new_trick": 1}, "new_trick 1 is no field that is known"),
    ({"repetition_penalty": "1"}, "expected a number"),
    ({"repetition_penalty": 0}, "penalty 0"),
    ({"eos_token_id": "x"}, "eos_token_id"),
  ):
    with pytest.raises(ValueError, match=message) as error:
      read(**values)
    assert answer_files.FILE in str(error.value)


def test_how_answers_are_chosen(bare, home):
  """As generation_config.json says; without the file as the release does."""
  assert (bare.choice.limits.penalty, bare.choice.ends) == (1, (509, 500))
  (home / answer_files.FILE).unlink()
  assert verbs.load(home).choice.limits.penalty == 1.05


def test_what_is_loaded_of_a_directory(home):
  found = verbs.load(home, dtype="bfloat16")
  assert "constants" in found.cfg.parts
  assert found.network.params["constants"]["pooled"].dtype == np.float32
  assert str(found.network.params["slots"]["embedding"].dtype) == "bfloat16"


def test_other_systems_refuse_what_they_have_not(capsys, tmp_path):
  GREY.save(tmp_path / "in.png")
  image = str(tmp_path / "in.png")
  assert cli.main(["edit", image, "make it red", "--model", "miniature"]) == 1
  assert (
    "cannot edit; it can generate, chat, reconstruct; miniature:nexus_gen can edit"
    in capsys.readouterr().err
  )
  for words, said in (
    (
      ["generate", "a red circle", "--size", "64x64"],
      "size: this model draws pictures of one size",
    ),
    (["generate", "a red circle", "--language", "zh"], "with the option language; it takes"),
    (["reconstruct", image, "--guidance", "2"], "with the option guidance; it takes"),
  ):
    assert cli.main([*words, "--output", str(tmp_path / "out.png")]) == 1
    assert said in capsys.readouterr().err
