"""The verbs called from Python with what people hand over: the right value, or one clear error."""

from collections.abc import Callable
import json
import logging as std_logging
from pathlib import Path
import shutil
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
import pytest

from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import seeds

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"
GREY = Image.new("RGB", (56, 56), (90, 90, 90))


@pytest.fixture(scope="module")
def model() -> verbs.Model:
  return verbs.load(TINY)


@pytest.fixture
def warned(caplog, monkeypatch) -> Callable[[], list[str]]:
  """What was said on stderr since the last call."""
  logger = std_logging.getLogger("absl")
  monkeypatch.setattr(logger, "propagate", True)
  caplog.set_level(std_logging.WARNING, logger="absl")
  assert logging.get_absl_logger() is logger

  def said() -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found

  return said


# verb, arguments, options, what the error says
Call = tuple[str, tuple[Any, ...], dict[str, Any], str]
WRONG: list[Call] = [
  ("generate", ("a red circle", [0]), {}, "expected a list of prompts, got 'a red circle'"),
  ("generate", ([], []), {}, "no prompts: expected at least one"),
  ("generate", ([""], [0]), {}, "prompt 1 is empty"),
  ("generate", (["a cat", " \n"], [0, 1]), {}, "prompt 2 is empty"),
  ("generate", ([None], [0]), {}, "prompt 1: expected a text, got None"),
  ("generate", (["a", "b"], [0]), {}, "2 prompts but 1 seeds"),
  ("generate", (["a"], 0), {}, "seeds: expected a list of whole numbers, got 0"),
  ("generate", (["a"], "0"), {}, "seeds: expected a list"),
  ("generate", (["a"], [-1]), {}, "seed -1: expected a whole number from 0 to"),
  ("generate", (["a"], [2**64]), {}, "seed 18446744073709551616: expected a whole number"),
  ("generate", (["a"], [0.5]), {}, "seed 0.5: expected a whole number"),
  ("generate", (["a"], [True]), {}, "seed True: expected a whole number"),
  ("generate", (["a"], [0]), {"sampler": "ddim"}, "sampler 'ddim': expected one of euler, heun"),
  ("generate", (["a"], [0]), {"scale": -1}, "scale -1: expected a finite number, 0 or more"),
  ("generate", (["a"], [0]), {"scale": float("nan")}, "scale nan: expected a finite number"),
  ("generate", (["a"], [0]), {"scale": float("inf")}, "scale inf: expected a finite number"),
  ("generate", (["a"], [0]), {"scale": "3"}, "scale '3': expected a finite number"),
  ("generate", (["a"], [0]), {"steps": -1}, "steps -1: expected a whole number, 0 to 1000"),
  ("generate", (["a"], [0]), {"steps": 2.5}, "steps 2.5: expected a whole number"),
  ("generate", (["a"], [0]), {"pixel_steps": -2}, "pixel_steps -2: expected a whole number"),
  ("generate", (["a"], [0]), {"pixel_steps": 1001}, "pixel_steps 1001: expected a whole number, 0"),
  ("generate", (["a"], [0]), {"steps": 10**9}, "steps 1000000000: expected a whole number, 0 to"),
  ("chat", (["a"], [None]), {"length": 10**9}, "length 1000000000: expected a whole number, 1 to"),
  ("generate", (["a"], [0]), {"images": [GREY, GREY]}, "1 prompts but 2 images"),
  ("generate", (["a"], [0]), {"images": GREY}, "images: expected a list of pictures, got Image"),
  ("generate", (["a"], [0]), {"images": ["a.png"]}, "image 1: expected a picture, of PIL"),
  ("generate", (["a"], [0]), {"images": [GREY], "max_pixels": 5}, "max_pixels 5: expected 784 or"),
  ("features", ([], []), {}, "no prompts"),
  ("chat", ("what?", [None]), {}, "expected a list of questions, got 'what?'"),
  ("chat", ([], []), {}, "no questions"),
  ("chat", (["\t"], [None]), {}, "question 1 is empty"),
  ("chat", (["what?"], []), {}, "1 questions but 0 images; None stands for no picture"),
  ("chat", (["what?"], [np.zeros((8, 8))]), {}, r"image 1: an image array is uint8[h, w, 3], not"),
  ("chat", (["what?"], [None]), {"length": 0}, "length 0: expected a whole number, 1 to 32768"),
  ("chat", (["what?"], [None]), {"temperature": -1}, "temperature -1: expected a finite number"),
  ("chat", (["what?"], [None]), {"temperature": float("nan")}, "temperature nan: expected"),
  ("chat", (["what?"], [None]), {"seed": -1}, "seed -1: expected a whole number"),
  ("chat", (["what?"], [None]), {"max_pixels": -1}, "max_pixels -1: expected a whole number"),
  ("reconstruct", ([], []), {}, "no images: expected at least one"),
  ("reconstruct", ([GREY], []), {}, "1 images but 0 seeds"),
  ("reconstruct", ([None], [0]), {}, "image 1: expected a picture, got None"),
  ("reconstruct", (GREY, [0]), {}, "images: expected a list of pictures"),
  ("encode", ([None],), {}, "image 1: expected a picture, got None"),
  (
    "paint",
    (np.zeros((1, 2, 2, 3)), [0]),
    {},
    "features of [1, 2, 2, 3]: expected finite [B, 2, 2, 48]",
  ),
]


@pytest.mark.parametrize(("verb", "arguments", "options", "message"), WRONG)
def test_wrong_input(model, verb, arguments, options, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    getattr(model, verb)(*arguments, **options)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"penalty": float("nan")}, {"penalty": float("inf")}])
def test_wrong_limits(options):
  with pytest.raises(ValueError, match="penalty"):
    decoding.Limits(**options)


def test_pictures_of_any_mode(model):
  """An RGBA, L, P picture or an array is what it looks like on white, in every verb."""
  pixels = np.full((56, 56, 3), 255, np.uint8)
  pixels[20:30] = 0
  plain = Image.fromarray(pixels)
  clear = plain.convert("RGBA")
  clear.putalpha(Image.fromarray(np.where(pixels[..., 0] == 0, 255, 0).astype(np.uint8)))
  hidden = np.asarray(clear).copy()
  hidden[hidden[..., 3] == 0] = 0  # hidden colours are black
  forms = [plain, pixels, Image.fromarray(hidden), plain.convert("L"), plain.convert("P")]
  features = model.encode(forms)
  assert features.shape[0] == 5
  for other in features[1:]:
    np.testing.assert_array_equal(other, features[0])
  # As `generate` returns them.
  np.testing.assert_array_equal(model.encode(np.stack([pixels, pixels])), features[:2])
  shown = model._batches.asking(["what?"] * 5, forms)["patches"]
  for other in shown[1:5]:
    np.testing.assert_array_equal(other, shown[0])


def test_seeds_of_64_bits(model):
  """Each has its own picture; below 2**32 it is that of the seed's key in jax."""
  import jax

  values = [5, 5_000_000_000, 5_000_000_000 % 2**32, 2**64 - 1]
  found = model.features(["a cat"] * 4, values, steps=1)
  apart = [np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]]
  assert min(apart) > 1e-2
  small = [0, 5, 2**32 - 1]
  keys = jax.random.key_data(seeds.keys(seeds.words(small)))
  wanted = [jax.random.key_data(jax.random.key(np.uint32(s))) for s in small]
  np.testing.assert_array_equal(keys, wanted)


def test_neighbours_do_not_matter(model):
  """Bit for bit, for any order and number that is padded to the same power of two."""
  texts, values = ["a cat", "a dog", "two dogs", "a red car"], [1, 2, 3, 4]
  found = model.features(texts, values, steps=2)
  for order in ([3, 1, 0, 2], [2, 0, 3]):
    some = model.features([texts[i] for i in order], [values[i] for i in order], steps=2)
    np.testing.assert_array_equal(some, found[order])


def test_large_photos_are_shrunk_to_fit(model, warned):
  """With a line that says so; not where --max-pixels or the model asks for less by itself."""
  photo, small = Image.new("RGB", (4032, 3024)), Image.new("RGB", (20, 20))
  prompt = model._batches.asking(["what is this?", "and this?"], [photo, small])
  assert prompt["tokens"].shape[1] <= 4096
  (line,) = warned()
  assert line.startswith("a picture of 4032 x 3024 is shrunk to 20")
  assert "in place of 4032 x 3024" in line
  images = np.sum(prompt["tokens"] == model.cfg.image_token, 1)
  assert 3900 < images[0] < 4096
  assert images[1] == 4  # 56 x 56, as transformers 5.24
  drawing = model._batches.drawing(["draw it as a cartoon"], [photo])
  assert drawing["tokens"].shape[1] <= 4096
  assert len(warned()) == 1
  asked = model._batches.asking(["what is this?"], [photo], max_pixels=1_003_520)
  assert 1200 < np.sum(asked["tokens"] == model.cfg.image_token) <= 1280
  assert asked["tokens"].shape[1] == 2048
  assert not warned()


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> verbs.Model:
  """A model that says of itself that it knows few words."""
  home = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("few") / "model"))
  values = json.loads((home / "tiny.json").read_text())
  values.setdefault("blip3o_jax", {})["words"] = ["a", "red", "circle", "is", "there"]
  (home / "tiny.json").write_text(json.dumps(values))
  return verbs.load(home)


def test_words_that_a_model_does_not_know(few, model, warned):
  found = few._batches.drawing(["A RED circle"], [])
  np.testing.assert_array_equal(
    found["tokens"], few._batches.drawing(["a red circle"], [])["tokens"]
  )
  assert not warned()
  few._batches.drawing(["a Crimson circle", "a red città, a red square 4x"], [])
  (line,) = warned()
  assert line.endswith("taken for others: crimson, città, square, 4x")
  few._batches.asking(["is there a cat?"], [None])
  assert "taken for others: cat" in warned()[0]
  # A model of any words is given them as they are.
  upper = model._batches.drawing(["A RED circle"], [])["tokens"]
  assert not np.array_equal(upper, model._batches.drawing(["a red circle"], [])["tokens"])
  assert not warned()
