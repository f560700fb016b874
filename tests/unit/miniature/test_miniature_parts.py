"""Where a working folder's frozen parts come from: recorded once, and refused when it changes."""

import json

import pytest

from blip3o_jax.miniature import parts
from blip3o_jax.miniature import shipped


def shipped_folder(folder, weights):
  """A folder of shipped parts, whose weights have this sum."""
  folder.mkdir(exist_ok=True)
  (folder / shipped.CARD).write_text(json.dumps({"sha256": {"model.safetensors": weights}}))
  (folder / shipped.SUMS).write_text(f"{weights}  model.safetensors\n")


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A folder in place of the shipped one."""
  folder = tmp_path / "shapes"
  shipped_folder(folder, "first")
  monkeypatch.setattr(shipped, "_ASSETS", tmp_path)
  return folder


@pytest.fixture
def work(tmp_path):
  folder = tmp_path / "work"
  folder.mkdir()
  return folder


def test_shipped_parts(home, work):
  parts.choose(work, "shipped", rests=("blip3o",))
  parts.choose(work, "shipped", rests=("blip3o",))
  found = parts.read(work)
  assert (found.kind, found.home) == ("shipped", home)
  assert found.encoder == f"{home}#only=encoder"
  assert found.backbone == f"{home}#only=backbone"
  assert found.decoder == (str(home),)


def test_trained_parts(work):
  """No shipped folder is looked for."""
  parts.choose(work, "trained")
  found = parts.read(work)
  assert (found.kind, found.home) == ("trained", work)
  assert found.backbone == found.reader == str(work / "backbone")
  assert found.decoder == (str(work / "autoencoder"), f"{work / 'unet'}#ema")


def test_the_other_choice_is_refused(home, work):
  parts.choose(work, "trained")
  with pytest.raises(ValueError, match="parts are trained; call with --from-scratch to go on"):
    parts.choose(work, "shipped", rests=("blip3o",))
  assert json.loads((work / parts.RECORD).read_text())["parts"] == "trained"


def test_a_folder_without_the_record(home, work):
  with pytest.raises(FileNotFoundError, match=r"parts\.json: absent; launch/quickstart\.py writes"):
    parts.read(work)


def test_other_shipped_parts_are_refused(home, work):
  parts.choose(work, "shipped", rests=("blip3o",))
  with (home / shipped.SUMS).open("a") as file:
    file.write("0  README.md\n")  # another page beside the same weights
  parts.choose(work, "shipped", rests=("blip3o",))
  shipped_folder(home, "second")
  with pytest.raises(ValueError, match="begun with other shipped parts than are installed now"):
    parts.choose(work, "shipped", rests=("blip3o",))


def test_parts_of_two_shipped_miniatures(home, work):
  """A folder rests on both: it is refused when the second is another one."""
  other = home.with_name("shapes_third")
  shipped_folder(other, "third")
  assert shipped.systems() == ["blip3o", "third"]
  assert shipped.directory("third") == other
  rests = ("blip3o", "third")
  parts.choose(work, "shipped", rests=rests)
  parts.choose(work, "shipped", rests=rests)
  shipped_folder(other, "fourth")
  with pytest.raises(ValueError, match="begun with other shipped parts than are installed now"):
    parts.choose(work, "shipped", rests=rests)


def test_shipped_parts_that_are_absent(home, work):
  (home / shipped.SUMS).unlink()
  with pytest.raises(FileNotFoundError, match="without the trained miniature"):
    parts.choose(work, "shipped", rests=("blip3o",))
  assert not (work / parts.RECORD).exists()
