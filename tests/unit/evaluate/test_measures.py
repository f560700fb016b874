"""`blip3o evaluate fid|clip|clip-i|clip-t`: folders, statistics that are kept, what is refused."""

import json
from pathlib import Path
import sys
import types
import urllib.error

import extractors as given
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.evaluate import extractors
from blip3o_jax.evaluate import measures
from blip3o_jax.evaluate import pictures
from blip3o_jax.evaluate.torch import clip
from blip3o_jax.evaluate.torch import inception
from blip3o_jax.use import picture

HERE = Path(given.__file__)
RGB = np.eye(3, dtype=np.uint8) * 255
COLORS = ("red", "green", "blue")


def flat(color: str, size: tuple[int, int] = (6, 8)) -> np.ndarray:
  return np.broadcast_to(RGB[COLORS.index(color)], (*size, 3)).copy()


def draw(folder: Path, names: str = "red green blue red", **settings) -> Path:
  """A folder of PNGs, one of each colour, with metadata."""
  for i, color in enumerate(names.split()):
    about = {"prompt": f"a {color} wall", "seed": 7 + i, "steps": 4, "fingerprint": "blake3:1"}
    data = picture.encode(flat(color), {**about, **settings})
    picture.write(folder / f"{i}.png", data)
  return folder


def noise(folder: Path, count: int, seed: int = 0) -> Path:
  """A folder of pictures that differ, of two shapes, some of them JPEG."""
  rng = np.random.default_rng(seed)
  folder.mkdir()
  for i in range(count):
    size = (5 + i % 2, 7, 3)
    image = Image.fromarray(rng.integers(0, 256, size, np.uint8))
    image.save(folder / f"{i:03d}.{'jpg' if i % 3 else 'png'}")
  return folder


def measure(*args) -> int:
  return cli.main(["evaluate", *map(str, args)])


def both(*names: str) -> list[str]:
  shown, said = (f"{HERE}:{name}" for name in names)
  return ["--extractor", shown, "--text-extractor", said]


def test_batches_hold_one_shape_and_every_picture(tmp_path):
  paths = pictures.listed(noise(tmp_path / "some", 23))
  found = list(pictures.batches(paths, 4))
  assert sorted(place for places, _ in found for place in places) == list(range(23))
  assert all(len(places) == len(pixels) <= 4 for places, pixels in found)
  for places, pixels in found:
    for place, each in zip(places, pixels, strict=True):
      assert np.array_equal(each, np.asarray(Image.open(paths[place]).convert("RGB")))


def test_clip_score_of_prompts_in_the_metadata(tmp_path, capsys):
  folder = draw(tmp_path / "drawn")
  wrong = picture.encode(flat("red"), {"prompt": "a blue wall", "seed": 1, "steps": 5})
  picture.write(folder / "9.png", wrong)
  assert measure("clip", "--pictures", folder, *both("colors", "words"), "--json") == 0
  told = json.loads(capsys.readouterr().out)
  assert told["value"] == pytest.approx(100 * 4 / 5)
  score = json.loads((tmp_path / "drawn.clip.json").read_text())
  assert [row["value"] for row in score["rows"]] == pytest.approx([100, 100, 100, 100, 0])
  assert score["rows"][4] == {"file": "9.png", "value": 0, "text": "a blue wall"}
  assert score["seeds"] == [7, 8, 9, 10, 1]
  assert score["settings"]["differing"] == ["fingerprint", "steps"]
  assert score["standard_error"] == pytest.approx(20)
  assert score["extractor"]["name"] == f"{HERE}:colors"
  assert score["extractor"]["fingerprint"].startswith("sha256:")
  assert "rows" not in told
  assert told["file"] == str(tmp_path / "drawn.clip.json")


def test_clip_t_of_a_manifest_and_another_field(tmp_path, capsys):
  folder = tmp_path / "edits"
  folder.mkdir()
  lines = []
  for name, caption in (("a.jpg", "red"), ("b.jpg", "red green")):
    Image.fromarray(flat("red", (16, 16))).save(folder / name, quality=100)
    lines.append(json.dumps({"file": name, "prompt": "change it", "caption": caption}))
  listing = tmp_path / "listing.jsonl"
  listing.write_text("\n".join(lines))
  args = ["clip-t", "--pictures", folder, "--manifest", listing, *both("colors", "words")]
  assert measure(*args, "--field", "caption") == 0
  score = json.loads((folder.with_name(f"{folder.name}.clip-t.json")).read_text())
  assert [row["value"] for row in score["rows"]] == pytest.approx([1, 2**-0.5], abs=1e-2)
  assert (score["field"], score["seeds"]) == ("caption", [None, None])
  assert measure(*args, "--field", "target") == 1
  assert "line 1: no field 'target'" in capsys.readouterr().err
  listing.write_text(lines[0])
  assert measure(*args) == 1
  assert "no line of the picture b.jpg" in capsys.readouterr().err
  listing.write_text("\n".join([*lines, lines[0].replace("a.jpg", "c.jpg")]))
  assert measure(*args) == 1
  assert "line 3: " in capsys.readouterr().err


def test_clip_i_pairs_by_name(tmp_path, capsys):
  a, b = draw(tmp_path / "a"), draw(tmp_path / "b", "red blue blue green")
  args = ["clip-i", "--pictures", a, "--reference", b, "--extractor", f"{HERE}:colors"]
  assert measure(*args, "--output", tmp_path / "score.json") == 0
  score = json.loads((tmp_path / "score.json").read_text())
  assert [row["value"] for row in score["rows"]] == pytest.approx([1, 0, 1, 0])
  assert score["value"] == 0.5
  assert score["settings"] == {"steps": 4, "fingerprint": "blake3:1", "differing": []}
  (b / "3.png").unlink()
  assert measure(*args) == 1
  assert "no picture 3, which the other folder has" in capsys.readouterr().err


def test_fid_with_statistics_that_are_kept(tmp_path, capsys, monkeypatch):
  pytest.importorskip("torchmetrics")
  a, b, cache = noise(tmp_path / "a", 40), noise(tmp_path / "b", 35, 1), tmp_path / "b.npz"
  args = ["fid", "--pictures", a, "--extractor", f"{HERE}:moments", "--json", "--batch", 8]
  assert measure(*args, "--reference", b, "--cache", cache) == 0
  first = json.loads(capsys.readouterr().out)
  assert first["value"] > 0
  assert first["extractor"] == {
    "name": f"{HERE}:moments",
    "fingerprint": "moments of tests, 1",
    "dimension": 6,
  }
  assert (first["pictures"]["count"], first["reference"]["count"]) == (40, 35)
  assert first["warnings"] == []
  assert measure(*args, "--reference", cache) == 0
  assert json.loads(capsys.readouterr().out)["value"] == first["value"]
  seen: list[Path] = []
  read = measures.statistics
  monkeypatch.setattr(
    measures, "statistics", lambda of, *more: seen.append(of.path) or read(of, *more)
  )
  assert measure(*args, "--reference", b, "--cache", cache) == 0
  assert json.loads(capsys.readouterr().out)["value"] == first["value"]
  assert seen == [a]  # the reference's were not computed again
  # Of another folder, and of another extractor.
  (b / "000.png").unlink()
  assert measure(*args, "--reference", b, "--cache", cache) == 1
  assert "statistics of another folder" in capsys.readouterr().err
  args[4] = f"{HERE}:colors"
  assert measure(*args, "--reference", cache) == 1
  assert "statistics of another extractor" in capsys.readouterr().err


def test_fid_of_few_pictures_warns(tmp_path, capsys):
  pytest.importorskip("torchmetrics")
  a, b = noise(tmp_path / "a", 6), noise(tmp_path / "b", 40, 1)
  args = ["fid", "--pictures", a, "--reference", b, "--extractor", f"{HERE}:moments"]
  assert measure(*args) == 0
  told = capsys.readouterr().err
  assert "6 pictures are few for features of 6 numbers" in told
  assert "singular" in told
  assert len(json.loads((tmp_path / "a.fid.json").read_text())["warnings"]) == 1


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (["--extractor", "nowhere"], "expected MODULE:FUNCTION"),
    (["--extractor", "nowhere_at_all:f"], "cannot be imported"),
    (["--extractor", f"{HERE}:absent"], "has no function 'absent'"),
    (["--extractor", f"{HERE}:flat"], "expected float[4, D]"),
    (["--extractor", f"{HERE}:nothing"], "not finite"),
    (["--text-extractor", f"{HERE}:words"], "go together"),
    (["--pictures", "/no/such/folder"], "no such folder"),
    (["--output", "/no/such/folder/score.json"], "no such folder"),
  ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, change, said):
  args = ["clip-t", "--pictures", draw(tmp_path / "drawn")]
  more = ["--text-extractor", f"{HERE}:words"] if "--extractor" in change else []
  if not more and change[0] != "--text-extractor":
    more = both("colors", "words")
  assert measure(*args, *more, *change) == 1
  error = capsys.readouterr().err.strip().split("\n")[-1]
  assert error.startswith("blip3o evaluate: ")
  assert said in error


def test_pictures_that_cannot_be_measured(tmp_path, capsys):
  folder = draw(tmp_path / "drawn")
  args = ["clip", "--pictures", folder, *both("colors", "words")]
  (folder / "1.png").write_bytes(b"no picture")
  assert measure(*args) == 1
  assert "1.png: not a picture that can be read" in capsys.readouterr().err
  picture.write(folder / "1.png", picture.encode(flat("red"), {"prompt": "x", "grid": [2, 2]}))
  assert measure(*args) == 1
  assert "1.png: a grid of pictures" in capsys.readouterr().err
  (folder / "1.png").unlink()
  Image.fromarray(flat("red")).save(folder / "1.jpg")
  assert measure(*args) == 1
  assert "1.jpg: nobody says what it was asked for" in capsys.readouterr().err


def clip_folder(folder: Path) -> Path:
  """A random CLIPModel of two small layers, with its processor and a tokenizer of letters."""
  transformers = pytest.importorskip("transformers")
  small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
  letters = [f"{c}{end}" for end in ("", "</w>") for c in "abcdefghijklmnopqrstuvwxyz"]
  vocabulary = {t: i for i, t in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
  end = vocabulary["<|endoftext|>"]
  text = dict(vocab_size=len(vocabulary), max_position_embeddings=12, eos_token_id=end, **small)
  config = transformers.CLIPConfig(
    text_config={**text, "bos_token_id": end - 1, "pad_token_id": end, "projection_dim": 8},
    vision_config=dict(image_size=16, patch_size=8, projection_dim=8, **small),
    projection_dim=8,
  )
  transformers.CLIPModel(config).save_pretrained(folder)
  transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(
    folder
  )
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
  (folder / "tokenizer_config.json").write_text(json.dumps(told))
  return folder


def test_clip_is_transformers_own(tmp_path, capsys):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model_folder, folder = clip_folder(tmp_path / "clip"), draw(tmp_path / "drawn")
  assert measure("clip-t", "--pictures", folder, "--clip", model_folder) == 0
  score = json.loads((folder.with_name(f"{folder.name}.clip-t.json")).read_text())
  model = transformers.CLIPModel.from_pretrained(model_folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
  processor = transformers.CLIPImageProcessorPil.from_pretrained(model_folder)
  texts = [row["text"] for row in score["rows"]]
  shown = processor(images=[flat(text.split()[1]) for text in texts], return_tensors="pt")
  said = tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
  with torch.inference_mode():
    out = model(**said, pixel_values=shown["pixel_values"])
  wanted = (out.image_embeds * out.text_embeds).sum(-1).numpy()  # which are of length 1
  assert [row["value"] for row in score["rows"]] == pytest.approx(wanted, abs=1e-5)
  assert np.ptp(wanted) > 1e-4
  assert score["extractor"]["dimension"] == 8
  assert score["extractor"]["fingerprint"] == extractors.hash_files(model_folder)
  # "a green wall" has ten letters, and two marks; "a red wall" fits.
  assert score["warnings"] == []
  long = picture.encode(flat("red"), {"prompt": "a wall that is red", "seed": 0})
  picture.write(folder / "4.png", long)
  assert measure("clip", "--pictures", folder, "--clip", model_folder) == 0
  assert "1 texts are longer than" in capsys.readouterr().err


def test_a_folder_that_is_no_whole_clip_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    clip.open_clip(tmp_path)
  folder = clip_folder(tmp_path / "clip")
  from safetensors.torch import load_file
  from safetensors.torch import save_file

  tensors = load_file(folder / "model.safetensors")
  del tensors["visual_projection.weight"]
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  assert torch.is_tensor(tensors["logit_scale"])
  with pytest.raises(ValueError, match=r"lacks visual_projection\.weight"):
    clip.open_clip(folder)


def test_weights_that_cannot_be_fetched_are_said_to_be(monkeypatch):
  pytest.importorskip("torch")
  import huggingface_hub
  import transformers

  def refuse(*args, **more):
    raise OSError("We couldn't connect to the hub\nand so on")

  assert huggingface_hub.__version__
  monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", refuse)
  with pytest.raises(OSError, match=r"cannot be fetched \(We couldn't .*--clip DIR"):
    clip.open_clip(None)

  def unreachable(*args, **more):
    raise urllib.error.URLError("no route")

  fake = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
  fake.URL_INCEPTION_V3, fake.FeatureExtractorInceptionV3 = "https://x/w.pth", unreachable  # type: ignore[attr-defined]
  monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
  monkeypatch.setitem(sys.modules, fake.__name__, fake)
  with pytest.raises(OSError, match=r"https://x/w\.pth: .*--inception FILE"):
    inception.inception()

  def damaged(*args, **more):
    raise RuntimeError("Error(s) in loading state_dict:\n many lines")

  fake.FeatureExtractorInceptionV3 = damaged  # type: ignore[attr-defined]
  with pytest.raises(ValueError, match=r"test_measures\.py: not the weights .* state_dict:$"):
    inception.inception(Path(__file__))


def test_without_the_libraries_they_are_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch_fidelity", None)
  with pytest.raises(ValueError, match=r"torch-fidelity.*--extractor MODULE:FUNCTION"):
    inception.inception()
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ValueError, match=r"torch, which is not here.*--text-extractor"):
    clip.open_clip(None)
  with pytest.raises(FileNotFoundError, match="no such file of weights"):
    inception.inception(Path("/no/such/file"))
