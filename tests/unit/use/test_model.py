"""The public model over a stand-in of a system: batches, seeds, options, and the commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
import pytest

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.use import model as using
from blip3o_jax.use import opening
from blip3o_jax.use import picture

GREY = Image.new("RGB", (56, 84), (90, 120, 30))
OPTIONS = {"steps": 20, "scale": 3.0, "size": (16, 32), "language": "en", "max_pixels": 0}
VERBS = ("generate", "edit", "reconstruct")


class Own:
  """A system's model that keeps what it is asked for; a picture is its seed and its place."""

  words: tuple[str, ...] = ()
  squashes = False

  def __init__(self) -> None:
    self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

  def takes(self, verb: str, **given: Any) -> dict[str, Any]:
    other = {"scale": 1.0} if given.get("decoder") == "generator" else {}
    return {**OPTIONS, "decoder": "editor", **other} if verb == "edit" else dict(OPTIONS)

  def generate(self, texts: Any, seeds: Any, **options: Any) -> np.ndarray:
    return self._drawn("generate", (texts, seeds), seeds, options)

  def edit(self, images: Any, texts: Any, seeds: Any, **options: Any) -> np.ndarray:
    return self._drawn("edit", (images, texts, seeds), seeds, options)

  def reconstruct(self, images: Any, seeds: Any, **options: Any) -> np.ndarray:
    return self._drawn("reconstruct", (images, seeds), seeds, options)

  def encode(self, images: Any) -> np.ndarray:
    return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])

  def _drawn(self, verb: str, args: Any, seeds: Any, options: dict[str, Any]) -> np.ndarray:
    watch = options.pop("watch", None)
    self.asked.append((verb, args, options))
    out = np.stack([np.full((16, 32, 3), seed % 255 + 1, np.uint8) for seed in seeds])
    if watch:
      for done in (1, 2):
        watch(SimpleNamespace(stage="features", done=done, total=2, preview=lambda: out))
    return out


@pytest.fixture
def own() -> Own:
  return Own()


@pytest.fixture
def model(own: Own, tmp_path: Path) -> using.Model:
  (tmp_path / "config.json").write_text("{}")
  return using.Model(opening.Opened("here", tmp_path, "toy", "float32", own), VERBS)


def test_a_list_of_any_length_in_batches_with_a_seed_a_picture(model, own):
  made = model.generate(["a", "b", "c"], seed=7, images_per_prompt=3, batch=4, guidance=1.5)
  assert [(p.prompt, p.seed) for p in made] == [(t, 7 + i) for i, t in enumerate("aaabbbccc")]
  assert [p.pixels[0, 0, 0] for p in made] == list(range(8, 17))
  assert [len(args[0]) for _, args, _ in own.asked] == [4, 4, 1]
  assert own.asked[0][2] == {"scale": 1.5}
  wanted = {"verb": "generate", "steps": 20, "guidance": 1.5, "size": [16, 32], "language": "en"}
  wanted |= {"model": "here", "system": "toy", "dtype": "float32"}
  wanted |= {"fingerprint": model.fingerprint, "version": blip3o_jax.__version__}
  assert made[0].settings == wanted
  assert [p.seed for p in model.generate("a", seed=[5, 2**64 - 1], images_per_prompt=2)] == [
    5,
    2**64 - 1,
  ]


def test_pictures_go_with_their_prompts(model, own):
  model.generate(["a", "b"], images=[GREY, None], images_per_prompt=2, batch=3)
  assert [x is None for _, _, told in own.asked for x in told["images"]] == [False] * 2 + [True] * 2
  own.asked.clear()
  made = model.edit(GREY, ["red", "blue"], 1, decoder="generator", language=None)
  ((verb, (images, texts, seeds), told),) = own.asked
  assert (verb, len(images), texts, seeds) == ("edit", 2, ["red", "blue"], [1, 2])
  assert told == {"decoder": "generator"}
  assert (made[1].settings["decoder"], made[1].settings["guidance"]) == ("generator", 1.0)
  assert model.edit(GREY, "red")[0].settings["guidance"] == OPTIONS["scale"]
  model.generate("a", images=GREY)
  assert own.asked.pop()[2]["images"][0].size == GREY.size
  assert [p.seed for p in model.reconstruct([GREY, GREY], 3)] == [3, 4]
  assert model.features(GREY).shape == (1, 3)
  assert model.features(np.stack([np.zeros((5, 6, 3), np.uint8)] * 3), batch=2).shape == (3, 3)


@pytest.mark.parametrize(
  ("verb", "args", "options", "message"),
  [
    ("generate", (["a", "b"], [1]), {}, "1 seeds for the 2 pictures"),
    ("generate", ("a", 2**64 - 1), {"images_per_prompt": 2}, "seed 18446744073709551616: expected"),
    ("generate", ("a", 0.5), {}, "seed 0.5: expected a whole number"),
    ("generate", ("a",), {"images_per_prompt": 0}, "images_per_prompt 0: expected"),
    ("generate", ("a",), {"batch": 0}, "batch 0: expected"),
    ("generate", ([],), {}, "no prompts"),
    ("generate", (" ",), {}, "prompt 1 is empty"),
    ("generate", (["a"],), {"images": [GREY, GREY]}, "1 prompts but 2 images"),
    ("generate", (["a", "b"],), {"images": GREY}, "2 prompts but 1 images"),
    (
      "generate",
      ("a",),
      {"decoder": "x"},
      "cannot generate with the option decoder; it takes steps",
    ),
    ("generate", ("a",), {"scale": 2.0}, "with the option scale; it takes steps, guidance"),
    ("edit", ([GREY, GREY], "x"), {}, "1 instructions but 2 images"),
    ("edit", ("x.png", "x"), {}, "images: expected a picture .PIL.Image.open. or a list"),
    ("reconstruct", ([None],), {}, "image 1: expected a picture, got None"),
  ],
)
def test_what_is_wrong_is_said_before_any_work(verb, args, options, message, model, own):
  with pytest.raises(ValueError, match=message):
    getattr(model, verb)(*args, **options)
  assert not own.asked


def test_a_reconstruction_stands_beside_what_was_rebuilt(model, own):
  """The squashed whole, or the middle: left and right thirds are black here."""
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 200
  assert (model.framed(wide, (8, 8)) == 200).all()
  own.squashes = True
  whole = model.framed(Image.fromarray(wide), (4, 12))
  assert np.array_equal(whole, wide)
  with pytest.raises(ValueError, match="image 1: expected a picture"):
    model.framed("x", (4, 4))


def test_a_verb_that_the_model_has_not(own, tmp_path):
  model = using.Model(opening.Opened("here", tmp_path, "toy", "float32", own), ("generate",))
  for call in (lambda: model.edit(GREY, "x"), lambda: model.features(GREY)):
    with pytest.raises(
      ValueError, match=r"here: a model of the system toy cannot .*; it can generate"
    ):
      call()


def test_progress_counts_pictures_and_ends_a_call(model, own):
  seen: list[using.Progress] = []
  model.generate(["a", "b", "c"], batch=2, progress=seen.append)
  assert [(p.first, p.count, p.pictures, p.part) for p in seen] == [
    *((0, 2, 3, 0.5), (0, 2, 3, 1.0)),
    *((2, 1, 3, 0.5), (2, 1, 3, 1.0)),
  ]
  assert seen[0].preview().shape == (2, 16, 32, 3)
  own.asked.clear()

  def stop(progress: using.Progress) -> None:
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    model.generate(["a", "b", "c"], batch=2, progress=stop)
  assert len(own.asked) == 1


def test_the_public_names():
  assert sorted(blip3o_jax.__all__) == ["Answer", "Model", "Picture", "Progress", "load"]
  assert blip3o_jax.Model is using.Model
  assert blip3o_jax.Picture is picture.Picture
  assert blip3o_jax.Progress is using.Progress
  with pytest.raises(AttributeError, match="no attribute 'Pictures'"):
    _ = blip3o_jax.Pictures


# Files -------------------------------------------------------------------------------------------


def test_a_png_keeps_what_it_was_asked_for(model, tmp_path):
  (made,) = model.generate("ein Käfer, 红", seed=2**64 - 1)
  path = made.save(tmp_path / "new" / "a.png")
  assert picture.read(path) == made.metadata
  assert picture.read(path)["prompt"] == "ein Käfer, 红"
  np.testing.assert_array_equal(np.asarray(Image.open(path)), made.pixels)
  assert made._repr_png_() == path.read_bytes()
  assert made.image.size == (32, 16)
  assert repr(made) == f"Picture(32 x 16, prompt 'ein Käfer, 红', seed {2**64 - 1})"
  with pytest.raises(ValueError, match=r"a\.jpg: expected a name that ends in \.png"):
    made.save(tmp_path / "a.jpg")


def test_a_png_of_others_is_refused(tmp_path):
  GREY.save(tmp_path / "bare.png")
  GREY.save(tmp_path / "bare.jpg")
  (tmp_path / "text.png").write_text("no picture")
  for name, message in (
    ("absent.png", "no such file"),
    ("bare.png", "without the text chunk 'blip3o'"),
    ("bare.jpg", "not a PNG that can be read"),
    ("text.png", "not a PNG that can be read"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      picture.read(tmp_path / name)
  with pytest.raises(IsADirectoryError, match="is a folder; expected a PNG"):
    picture.read(tmp_path)


def test_a_fingerprint_is_of_names_and_bytes(tmp_path):
  home = tmp_path / "model"
  home.mkdir()
  (home / "config.json").write_text("{}")
  (home / "model.safetensors").write_bytes(bytes(100))
  (home / "README.md").write_text("words")
  first = opening.fingerprint(home)
  assert first.startswith("blake3:")
  assert len(first) == 71
  (home / "README.md").write_text("other words")
  assert opening.fingerprint(home) == first
  (home / "model.safetensors").write_bytes(bytes(99) + b"\x01")
  assert opening.fingerprint(home) != first
  (home / "model.safetensors").write_bytes(bytes(100))
  (home / "model.safetensors").rename(home / "other.safetensors")
  assert opening.fingerprint(home) != first


# The commands ------------------------------------------------------------------------------------


@pytest.fixture
def command(model, monkeypatch, tmp_path):
  monkeypatch.setattr(blip3o_jax, "load", lambda *args, **kw: model)
  monkeypatch.chdir(tmp_path)
  GREY.save("in.png")
  return lambda *args: cli.main([*args[:1], "--model", "x", *args[1:]])


def test_words_that_a_model_of_few_does_not_know(own, tmp_path):
  assert blip3o_jax.load().unknown_words("A Crimson circle", "crimson <image> blob") == [
    "crimson",
    "blob",
  ]
  assert "crimson" not in blip3o_jax.load().words
  any_word = using.Model(opening.Opened("here", tmp_path, "toy", "float32", own), VERBS)
  assert any_word.words == ()
  assert any_word.unknown_words("a crimson circle") == []


def test_what_the_commands_hand_over(command, own, capsys):
  size = ("--size", "512x768", "--steps", "20", "--guidance", "1.5", "--language", "zh")
  more = ("--seed", "5", "--decoder", "generator", "--max-pixels", "7840")
  assert (
    command("edit", "in.png", "make it red", "and blue", "--output", "o.png", *size, *more) == 0
  )
  verb, (images, texts, seeds), options = own.asked.pop()
  assert (verb, texts, seeds) == ("edit", ["make it red", "and blue"], [5, 6])
  assert [i.size for i in images] == [GREY.size] * 2
  drawn = {"size": (512, 768), "steps": 20, "scale": 1.5, "language": "zh"}
  assert options == {**drawn, "decoder": "generator", "max_pixels": 7840}
  edited = picture.read("o.png")["pictures"]
  assert [(f["prompt"], f["image"]) for f in edited] == [
    ("make it red", "in.png"),
    ("and blue", "in.png"),
  ]
  assert command("generate", "a cat", "-n", "3", "--output", "made", *size) == 0
  assert own.asked.pop() == ("generate", (["a cat"] * 3, [0, 1, 2]), drawn)
  found = [picture.read(f"made/000{i}.png") for i in range(3)]
  assert [(f["prompt"], f["seed"]) for f in found] == [("a cat", i) for i in range(3)]
  assert command("reconstruct", "in.png", "--size", "64") == 0
  assert own.asked.pop()[2] == {"size": (64, 64)}
  assert picture.read("reconstructed.png")["image"] == "in.png"
  assert command("generate", "a cat", "--image", "in.png", "--output", "shown.png", *size) == 0
  assert own.asked.pop()[2]["images"][0].size == GREY.size
  assert picture.read("shown.png")["image"] == "in.png"
  assert "image" not in found[0]
  out = capsys.readouterr().out.splitlines()
  assert out[0] == "o.png"
  assert out[1:4] == [f"made/000{i}.png" for i in range(3)]
  assert out[4].startswith("in.png: PSNR ")
  assert Image.open("reconstructed.png").size == (2 * 32 + 2, 16)
  assert command("edit", "made", "make it red") == 1
  assert "made: is a folder; expected the file of a picture" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    command("generate", "a cat", "--image", "in.png", "--image", "in.png")
  assert "--image several times: a prompt begins with one picture" in capsys.readouterr().err
  for wrong in ("0x5", "12x", "x", "1x2x3"):
    with pytest.raises(SystemExit):
      command("generate", "a cat", "--size", wrong)
    assert "expected height and width in pixels, as 512x768" in capsys.readouterr().err


def test_show_prints_the_metadata(command, capsys):
  assert command("generate", "a cat", "--seed", "9", "--output", "a.png") == 0
  capsys.readouterr()
  assert cli.main(["show", "a.png"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("a.png\n")
  assert "  prompt       a cat\n  seed         9\n" in out
  assert cli.main(["show", "in.png"]) == 1
  assert "in.png: a PNG without the text chunk" in capsys.readouterr().err


def test_what_changes_the_results_is_part_of_the_type(monkeypatch, tmp_path):
  """So that pictures of int8 are not taken for those of floats when a call goes on."""
  from blip3o_jax import systems

  told = []
  monkeypatch.setattr(systems, "of", lambda _: "blip3o")
  monkeypatch.setattr(
    systems.SYSTEMS["blip3o"], "load", lambda path, **how: told.append(how["memory"]) or Own()
  )
  made = [
    blip3o_jax.load(tmp_path, dtype="bfloat16", weights="int8", tile=512),
    blip3o_jax.load(tmp_path, offload=True),
  ]
  assert [model.dtype for model in made] == ["bfloat16+int8+tile512", "float32"]
  assert [(how.int8, how.tile, how.offload) for how in told] == [
    (True, 512, False),
    (False, 0, True),
  ]
