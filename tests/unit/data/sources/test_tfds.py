"""Sets that TFDS prepared, written here by our builder and by one of their own: exact pictures."""

from concurrent import futures
import io
import os
from pathlib import Path
import sys
import types

from fakes import jpeg
from fakes import write_tar
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.data import images
from blip3o_jax.data import publish
from blip3o_jax.data import sources
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.sources.tfds import TfdsSource

tfds = pytest.importorskip("tensorflow_datasets")

NAMES = ("rgb", "jpeg", "palette", "rgba", "grey", "bit", "webp")


def pictures():
  """A picture of each kind, encoded, by NAMES."""
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
  rgb = Image.fromarray(pixels[..., :3])
  made = {"rgb": rgb, "palette": rgb.quantize(7), "rgba": Image.fromarray(pixels)}
  made |= {"grey": rgb.convert("L"), "bit": rgb.convert("1")}
  out = {"jpeg": jpeg(1)}
  for name, picture in made.items():
    data = io.BytesIO()
    picture.save(data, "PNG")
    out[name] = data.getvalue()
  data = io.BytesIO()
  rgb.save(data, "WEBP", lossless=True)
  return out | {"webp": data.getvalue()}


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tars")
  members = {}
  for name, data in pictures().items():
    ending = name if name in ("jpeg", "webp") else "png"
    members |= {f"{name}.{ending}": data, f"{name}.txt": f"a {name} ü".encode()}
  write_tar(folder / "a.tar", members | {"bad.txt": b"\xff", "bad.jpg": b"x"})
  return str(folder)


@pytest.fixture(scope="module")
def prepared(tars, tmp_path_factory):
  what = publish.Set(tars, licence="CC0")
  return publish.prepare("my_captions", what, str(tmp_path_factory.mktemp("tfds")))


def build(folder, features, examples, **options):
  """Prepares a set with TFDS itself; examples are {split: list}."""

  def body(names):
    names["__module__"], names["name"], names["VERSION"] = __name__, "theirs", "1.0.0"
    names["_info"] = lambda self: tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )
    names["_split_generators"] = lambda self, _: {s: self._generate_examples(s) for s in examples}
    names["_generate_examples"] = lambda self, split: enumerate(examples[split])

  bases = (tfds.core.GeneratorBasedBuilder,)
  made = types.new_class("Theirs", bases, {"skip_registration": True}, body)
  kind = options.get("kind", "array_record")
  builder = made(data_dir=str(folder), file_format=kind)
  builder.download_and_prepare(
    file_format=kind, download_config=tfds.download.DownloadConfig(num_shards=options.get("shards"))
  )
  return str(builder.data_path)


def test_pictures_are_exact(prepared):
  source = sources.opened(prepared, Reading())
  assert isinstance(source, TfdsSource)
  assert len(source) == len(NAMES)
  wanted = pictures()
  with futures.ThreadPoolExecutor(4) as pool:
    got = list(pool.map(source.__getitem__, [*range(len(source))] * 10))
  records = {record.prompt.split()[1]: record for record in got}
  assert sorted(records) == sorted(NAMES)
  for name, record in records.items():
    assert record.image == wanted[name]
    assert record.prompt == f"a {name} ü"
    assert record.name.endswith(f":a.tar:{name}")
    assert images.decode(record.image, "x").mode == "RGB"
  assert [source.words(i).prompt for i in range(len(source))] == [r.prompt for r in got[:7]]
  assert len(set(source.hashes(0, 7).tolist())) == 7
  # A palette's colours, which TFDS's own decoding with Pillow gives as indices.
  colours = np.asarray(Image.open(io.BytesIO(wanted["palette"])).convert("RGB"))
  np.testing.assert_array_equal(images.decode(records["palette"].image, "x"), colours)


def test_what_is_published_says_what_it_is(prepared, caplog):
  info = tfds.builder_from_directory(prepared).info
  assert info.full_name == "my_captions/1.0.0"
  assert "CC0" in str(info)
  assert info.splits["train"].num_examples == len(NAMES)
  with pytest.raises(FileExistsError, match="exists already"):
    publish.prepare("my_captions", publish.Set("x"), str(Path(prepared).parents[1]))
  with pytest.raises(ValueError, match="name 'My-captions': expected lower case"):
    publish.captions("My-captions", publish.Set("x"))


def test_the_command(tars, tmp_path, capsys, monkeypatch):
  args = ["pack", tars, "--output", str(tmp_path), "--format", "tfds", "--name", "mine"]
  assert cli.main(args) == 0
  folder = capsys.readouterr().out.splitlines()[-1]
  assert folder == str(tmp_path / "mine" / "1.0.0")
  assert len(TfdsSource(folder, Reading())) == len(NAMES)


def test_lists_splits_and_numbers(tmp_path):
  features = {
    "target": tfds.features.Image(),
    "before": tfds.features.Sequence(tfds.features.Image()),
    "texts": tfds.features.Sequence(tfds.features.Text()),
    "label": tfds.features.ClassLabel(names=["a", "b"]),
  }

  def example(i, texts=("one", "two")):
    files = [io.BytesIO(jpeg(i + j)) for j in range(3)]
    return {"target": files[0], "before": files[1:], "texts": list(texts), "label": 0}

  sets = {"train": [example(i) for i in range(7)], "test": [example(9), example(0, [" "])]}
  path = build(tmp_path, features, sets, shards=2)
  source = TfdsSource(path, Reading(inputs="before"))
  assert len(source) == 7
  assert {source[i].image for i in range(7)} == {jpeg(i) for i in range(7)}
  first = source[0]
  i = next(i for i in range(7) if jpeg(i) == first.image)
  assert first.inputs == (jpeg(i + 1), jpeg(i + 2))
  assert first.prompt == "one"
  keys = [source.index.key(i) for i in range(7)]
  assert keys == [b"%d" % i for i in range(7)]
  test = TfdsSource(path, Reading(split="test"))
  assert len(test) == 1
  assert test.index.left == {"captions that are empty or white space": 1}
  for reading, match in (
    (Reading(split="val"), "split 'val': it has test, train"),
    (Reading(caption="label"), "caption 'label': expected one of its features texts"),
    (Reading(inputs="label"), "inputs 'label': expected one of its features before, target"),
  ):
    with pytest.raises(ValueError, match=match):
      TfdsSource(path, reading)


def test_what_cannot_be_chosen_or_read(tmp_path):
  texts = {"a": tfds.features.Text(), "b": tfds.features.Text()}
  features = texts | {"image": tfds.features.Image()}
  path = build(tmp_path, features, {"train": [{"a": "x", "b": "y", "image": io.BytesIO(jpeg(0))}]})
  with pytest.raises(ValueError, match=r"caption: expected one of its features a, b; name it with"):
    TfdsSource(path, Reading())
  assert TfdsSource(path, Reading(caption="b"))[0].prompt == "y"
  with pytest.raises(FileNotFoundError, match=r"it has no dataset_info\.json"):
    TfdsSource(str(tmp_path), Reading())
  with pytest.raises(FileNotFoundError, match="no such folder"):
    TfdsSource(str(tmp_path / "absent"), Reading())
  with pytest.raises(ValueError, match="from local disks"):
    TfdsSource("gs://bucket/set/1.0.0", Reading())
  info = Path(path, "dataset_info.json")
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(ValueError, match="prepared as tfrecord; prepare it with tfds build --file_f"):
    TfdsSource(path, Reading())
  info.write_text("{")
  with pytest.raises(ValueError, match="TFDS cannot read what it says of itself"):
    TfdsSource(path, Reading())


def test_a_cut_file(tmp_path, caplog):
  features = {"caption": tfds.features.Text(), "image": tfds.features.Image()}
  examples = [{"caption": f"c{i}", "image": io.BytesIO(jpeg(i))} for i in range(8)]
  path = build(tmp_path, features, {"train": examples}, shards=2)
  source = TfdsSource(path, Reading())
  file = sorted(Path(path).glob("*train*"))[0]
  count = source.index.bounds[1]
  os.truncate(file, file.stat().st_size - 100)
  with pytest.raises(BadRecord, match=f"{file.name}:0: the file was changed while in use"):
    source[0]
  with pytest.raises(ValueError, match=f"{file.name}: cut or damaged"):
    TfdsSource(path, Reading())
  rest = TfdsSource(path, Reading(partial=True))
  assert [rest[i].prompt for i in range(len(rest))] == [
    source[i].prompt for i in range(count, len(source))
  ]
  assert f"files that are cut: {count} of this one" in caplog.text


def test_questions_are_not_captions(tmp_path):
  (tmp_path / "q.jsonl").write_text(
    '{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nhow many?"}, '
    '{"from": "gpt", "value": "two"}]}\n'
  )
  (tmp_path / "a.jpg").write_bytes(jpeg(0))
  with pytest.raises(ValueError, match="expected a picture and its caption; pack questions"):
    list(publish.examples(str(tmp_path / "q.jsonl"), Reading(), 0, 1))


def test_a_builder_of_ones_own_file(tars, tmp_path, monkeypatch):
  home = tmp_path / "my_captions"
  home.mkdir()
  (home / "my_captions_dataset_builder.py").write_text(
    "from blip3o_jax.data import publish\n"
    f'Builder = publish.captions("my_captions", publish.Set({tars!r}), __name__)\n'
  )
  # What `tfds build` does, whose command line needs TensorFlow.
  monkeypatch.syspath_prepend(str(home))
  made = tfds.core.community.builder_cls_from_module("my_captions_dataset_builder")
  builder = made(data_dir=str(tmp_path / "out"), file_format="array_record")
  builder.download_and_prepare(file_format="array_record")
  assert len(TfdsSource(str(tmp_path / "out" / "my_captions" / "1.0.0"), Reading())) == len(NAMES)


def test_beam_that_is_not_installed(tars, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
  args = ["pack", tars, "--output", str(tmp_path), "--format", "tfds", "--name", "mine"]
  assert cli.main([*args, "--beam", "runner=DirectRunner"]) == 1
  assert "generating with Beam needs it: pip install apache-beam" in capsys.readouterr().err


def test_generating_with_beam(tars, tmp_path, capsys):
  pytest.importorskip("apache_beam")
  args = ["pack", tars, "--output", str(tmp_path), "--format", "tfds", "--name", "mine"]
  assert cli.main([*args, "--beam", "runner=DirectRunner"]) == 0
  source = TfdsSource(str(tmp_path / "mine" / "1.0.0"), Reading())
  assert {source[i].image for i in range(len(source))} == set(pictures().values())
