"""What a set says of its licence, and that it is shown and kept."""

import json
from pathlib import Path

import fsspec
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.data import licence
from blip3o_jax.data.sources import arrayrecord


def folder(path: Path, **texts: str) -> Path:
  path.mkdir()
  for name, text in texts.items():
    (path / name.replace("_dot_", ".")).write_text(text)
  return path


@pytest.mark.parametrize(
  ("head", "name"),
  [
    ("license: cc-by-4.0\ntags:\n- images\n", "cc-by-4.0"),
    ("license:\n- cc-by-4.0\n- mit\ntags:\n- images\n", "cc-by-4.0, mit"),
    ("tags:\n- images\nlicense:\n  - 'cc0-1.0'\n", "cc0-1.0"),
    ('license: [cc-by-4.0, "mit"]\n', "cc-by-4.0, mit"),
    ("license: other\nlicense_name: some-terms\n", "other"),
    ("license:\nlanguage: en\n", ""),
    ("license: null\n", ""),
    ("license_link: https://example.org\n", ""),
    ("language: en\n", ""),
  ],
)
def test_the_head_of_a_card(head, name):
  assert licence.card(f"---\n{head}---\n# Pictures\nlicense: none of the head\n") == name
  assert licence.card(f"# Pictures\n{head}") == ""


def test_what_is_looked_at_first(tmp_path):
  card = "---\nlicense: mit\n---\n"
  facts = json.dumps({"redistributionInfo": {"license": "CC BY 4.0"}})
  for i, (texts, said) in enumerate(
    (
      ({}, "none named"),
      ({"LICENSE": "Do as you like."}, "see there (LICENSE)"),
      ({"license_dot_txt": "Do as you like."}, "see there (license.txt)"),
      ({"LICENSE": "", "README_dot_md": card}, "mit (README.md)"),
      ({"LICENSE": "", "README_dot_md": "# Pictures"}, "see there (LICENSE)"),
      ({"README_dot_md": card, "dataset_info_dot_json": facts}, "CC BY 4.0 (dataset_info.json)"),
      ({"README_dot_md": card, "dataset_info_dot_json": "{}"}, "mit (README.md)"),
      ({"README_dot_md": card, "manifest_dot_json": '{"licence": "CC0"}'}, "CC0 (manifest.json)"),
      ({"README_dot_md": card, "manifest_dot_json": '{"licence": null}'}, "mit (README.md)"),
      ({"README_dot_md": card, "manifest_dot_json": '{"licence": " "}'}, "mit (README.md)"),
      ({"README_dot_md": card, "manifest_dot_json": "[1]"}, "mit (README.md)"),
      ({"README_dot_md": card, "manifest_dot_json": "{"}, "mit (README.md)"),
    )
  ):
    path = folder(tmp_path / str(i), **texts)
    assert str(licence.note(str(path))) == said, texts
    (path / "a.tar").write_bytes(b"")
    assert str(licence.note(str(path / "a.tar"))) == said
  assert licence.note("") == licence.note(str(tmp_path / "absent")) == licence.Note()


def test_behind_an_address():
  disk = fsspec.filesystem("memory")
  disk.pipe("/licensed/README.md", b"---\nlicense: mit\n---\n")
  disk.pipe("/licensed/a.tar", b"")
  try:
    assert str(licence.note("memory://licensed")) == "mit (README.md)"
    assert licence.note("memory://licensed/a.tar").name == "mit"
  finally:
    disk.rm("/licensed", recursive=True)


def test_it_is_shown_and_packed(tmp_path, capsys):
  path = folder(tmp_path / "set", README_dot_md="---\nlicense: cc-by-4.0\n---\n")
  Image.new("RGB", (8, 8)).save(path / "wall.png")
  (path / "list.jsonl").write_text('{"image": "wall.png", "prompt": "a wall"}\n')
  file = tmp_path / "figures.json"
  assert cli.main(["check", str(path), "--json", str(file)]) == 0
  assert "  licence      cc-by-4.0 (README.md)" in capsys.readouterr().out
  assert json.loads(file.read_text())["licence"] == "cc-by-4.0 (README.md)"
  for more, name in (((), "cc-by-4.0"), (("--licence", "MIT"), "MIT")):
    out = tmp_path / name
    assert cli.main(["pack", str(path), "--output", str(out), *more]) == 0
    assert arrayrecord.read_manifest(str(out))["licence"] == name
    assert licence.note(str(out)) == licence.Note(name, "manifest.json")
