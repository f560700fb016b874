"""docs/data.md says what is true: its lines for public sets, its config, its lists and commands."""

from pathlib import Path
import re
from typing import get_args

from fakes import jpeg
from fakes import write_tar
import layouts
from ml_collections import ConfigDict
import pytest

from blip3o_jax import cli
from blip3o_jax import config
from blip3o_jax.data import opening
from blip3o_jax.data.options import Data
from blip3o_jax.data.records import DAMAGE
from blip3o_jax.data.sources import mixed
from blip3o_jax.data.sources.reading import Layout
from blip3o_jax.data.sources.reading import Reading

TEXT = (Path(__file__).parents[3] / "docs" / "data.md").read_text()


def section(title):
  return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text):
  """The cells of the rows of tables, without their heads."""
  found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
  rows = [line for body in found for line in body.splitlines()]
  return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


PUBLIC = {row[0]: row[2] for row in table(section("Public sets"))}


def read(line, home):
  """The data of a row's fields."""
  (fields,) = re.fullmatch("`(.*)`", line).groups()
  words = fields.replace("DIR", str(home)).split(" ")
  values = config.load(ConfigDict({"data": config.to_config(Data())}), words)
  return config.build(Data, values.data)


def test_every_public_set_has_a_line():
  assert list(PUBLIC) == list(layouts.ALL)
  assert len(PUBLIC) >= 11


@pytest.mark.parametrize("name", PUBLIC)
def test_the_line_of_a_public_set_reads_it(name, tmp_path):
  path, reading, expected = layouts.ALL[name](tmp_path)
  data = read(PUBLIC[name], tmp_path)
  assert (data.path, data.reading) == (str(path), Reading(**reading))
  source = opening.open_source(data)
  records = [source[i] for i in range(len(source))]
  assert [(record.prompt, len(record.inputs)) for record in records] == expected


def test_the_config_of_a_mixture(tmp_path):
  """As it stands there, with folders that are here."""
  pytest.importorskip("pyarrow")
  for name in ("long", "short", "t2i"):
    (tmp_path / name).mkdir()
  for name in ("long", "short"):
    write_tar(tmp_path / name / "0.tar", {"0.jpg": jpeg(0), "0.txt": name.encode()})
  layouts.bagel_t2i(tmp_path)
  (code,) = re.findall(r"```python\n(.*?)```", section("Several sets, several captions"), re.S)
  file = tmp_path / "mine.py"
  file.write_text(code.replace("/data/", f"{tmp_path}/"))
  values = config.load(str(file))
  data = config.build(Data, values.data)
  assert data.mixture == config.build(Data, values.eval_data).mixture
  pieces = mixed.pieces(opening.open_source(data))
  found = {piece.name: (piece.weight, piece.source.words(0).prompt) for piece in pieces}
  assert found == {
    "long": (0.6, "long"),
    "short": (0.1, "short"),
    "t2i.captions.long": (pytest.approx(0.27), "long 0"),
    "t2i.captions.short": (pytest.approx(0.03), "s0"),
  }
  assert cli.main(["check", f"{file}:data=pixels"]) == 0


def test_kinds_of_damage_fields_and_layouts_are_all_there():
  kinds = {row[0].strip("`"): row[1] for row in table(section("Damaged records"))}
  assert kinds == DAMAGE
  said = section("Layouts")
  for layout in get_args(Layout):
    assert layout == "auto" or f"| `{layout}`" in said, layout
  for field in Reading.__dataclass_fields__:
    assert f"`{field}`" in said or f".{field}`" in said, field


def test_commands_and_their_options_exist(capsys):
  verbs = set(re.findall(r"^    blip3o (\w+)", TEXT, re.M)) | set(
    re.findall(r"`blip3o (\w+)", TEXT)
  )
  assert {"check", "index", "encode", "pack", "train"} <= verbs <= set(cli.EXAMPLES)
  said = section("From a folder to a run").partition("What `blip3o check` takes")[2]
  with pytest.raises(SystemExit):
    cli.main(["check", "--help"])
  known = capsys.readouterr().out
  options = set(re.findall(r"`(--[a-z]+)", said))
  assert len(options) > 10
  assert all(option in known for option in options)


def test_from_a_folder_to_a_run_is_under_ten_lines():
  commands = re.findall(r"^    (?:blip3o|mkdir) .*", section("From a folder to a run"), re.M)
  assert 6 <= len(commands) < 10


def test_links_lead_somewhere():
  titles = re.findall(r"^## (.*)", TEXT, re.M)
  heads = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
  links = set(re.findall(r"\]\(#([^)]*)\)", TEXT))
  assert links
  assert links <= heads
