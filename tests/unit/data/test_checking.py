"""What a check says of a set whose contents are known: in its table, in JSON, and on its page."""

import io
import json
import re

from commands import command
from fakes import TINY
from fakes import InMemory
from fakes import jpeg
from fakes import npy
from fakes import write_tar
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.data import checking
from blip3o_jax.data import lengths
from blip3o_jax.data.checking import Asked
from blip3o_jax.data.checking import Tokens
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record


class Damaged(InMemory):
  """Some of its records are errors."""

  def __getitem__(self, index):
    if isinstance(self.records[index], BadRecord):
      raise self.records[index]
    return self.records[index]

  def parts(self):
    return []


def png(mode, width, height):
  out = io.BytesIO()
  Image.new(mode, (width, height)).save(out, "PNG")
  return out.getvalue()


def record(i, **fields):
  fields = {"image": jpeg(i), "prompt": f"caption {i}", "name": f"r{i}"} | fields
  return Record(**fields)


LETTERS = Tokens("letters", lambda record: len(record.prompt))


def test_pictures_by_size_mode_and_format():
  source = InMemory(
    [
      record(0, image=png("L", 10, 20)),
      record(1, image=png("RGB", 30, 40), inputs=(png("RGBA", 50, 60),)),
      record(2),
      record(3, image=np.zeros((7, 9, 3), np.uint8)),
      record(4, image=None, features=np.zeros((2, 2, 8), np.float16)),
    ]
  )
  facts, shown = checking.check(source, "memory")
  found = facts["pictures"]
  assert (found["looked_at"], found["pictures"], found["inputs"]) == (5, 5, 1)
  assert found["modes"] == {"RGB": 3, "L": 1, "RGBA": 1}
  assert found["formats"] == {"PNG": 3, "JPEG": 1, "array": 1}
  assert found["features"] == {"float16[2x2x8]": 1}
  width = found["sizes"]["width"]
  assert (width["least"], width["half"], width["most"]) == (9, 30, 50)
  assert {"width": 9, "height": 7, "count": 1} in found["sizes"]["most"]
  assert facts["first"][0] == {"id": "r0", "caption": "caption 0", "width": 10, "height": 20}
  assert facts["first"][4] == {"id": "r4", "caption": "caption 4", "width": None, "height": None}
  assert facts["parts"] == [{"name": "memory", "records": 5}]
  assert [each.picture is None for each in shown] == [False] * 4 + [True]
  assert Image.open(io.BytesIO(shown[1].picture)).size == (30, 40)
  assert not facts["damaged"]


def test_damage_is_counted_by_kind_and_stops_nothing():
  source = Damaged(
    [
      BadRecord("a: not UTF-8", "text"),
      record(1, image=b"no picture"),
      record(2, image=jpeg(2)[:-300]),
      record(3, image=png("RGB", 1, 900)),
      record(4, inputs=(b"",)),
      record(5),
    ]
  )
  facts, shown = checking.check(source, "memory")
  counts = {kind: each["count"] for kind, each in facts["damaged"].items()}
  assert counts == {"text": 1, "picture": 3, "size": 1}
  assert facts["damaged"]["text"]["first"] == "a: not UTF-8"
  assert facts["damaged"]["picture"]["first"].startswith("r1: ")
  assert [each["id"] for each in facts["first"]] == ["r5"] == [each.id for each in shown]
  assert facts["records"] == 6
  assert facts["captions"]["of"] == 5


def test_copies():
  images = [jpeg(seed) for seed in (0, 1, 0, 0, 9)]
  texts = ["a", "same", "same", "", ""]
  records = [record(i, image=images[i], prompt=texts[i]) for i in range(5)]
  facts, _ = checking.check(InMemory(records), "memory")
  found = facts["duplicates"]
  assert found["pictures"] == {
    "of": 5,
    "copies": 2,
    "most_frequent": {"count": 3, "records": ["r0", "r2", "r3"]},
  }
  most = {"count": 2, "records": ["r1", "r2"], "caption": "same"}
  assert found["captions"] == {"of": 3, "copies": 1, "most_frequent": most}
  assert facts["captions"]["empty"] == 2


def test_a_sample_is_spread_and_captions_are_all_read():
  records = [record(i, image=png("RGB", 1 + i, 5)) for i in range(100)]
  facts, _ = checking.check(InMemory(records), "memory", Asked(sample=5))
  assert facts["pictures"]["looked_at"] == 5
  seen = {each["width"] for each in facts["pictures"]["sizes"]["most"]}
  assert seen == {1, 26, 51, 75, 100} or seen == {1, 26, 50, 75, 100}
  assert facts["captions"]["of"] == 100
  every, _ = checking.check(InMemory(records), "memory", Asked(sample=0))
  assert every["pictures"]["looked_at"] == 100


def test_lengths_and_the_padding_that_follows():
  prompts = ["x" * 20] * 30 + ["x" * 120] * 69 + ["x" * 300]
  source = InMemory([record(i, image=None, prompt=text) for i, text in enumerate(prompts)])
  counts = np.array([len(text) for text in prompts])
  facts, _ = checking.check(source, "memory", Asked(tokens=LETTERS, buckets=(64, 256)))
  assert facts["captions"]["tokens"] | {"mean": 0} == {
    **{"least": 20, "5 %": 20, "half": 120, "95 %": 120, "most": 300},
    "mean": 0,
  }
  assert facts["captions"]["tokens"]["mean"] == counts.mean()
  found = facts["buckets"]
  assert found["unit"] == "tokens"
  padding = 1 - np.minimum(counts, 256).sum() / (30 * 64 + 70 * 256)
  assert found["current"] == {
    "buckets": [64, 256],
    "padding": pytest.approx(padding),
    "cut": 1,
  }
  assert found["best"]["buckets"] == list(lengths.best(counts)) == [32, 128, 304]
  words, _ = checking.check(source, "memory")
  assert words["captions"]["words"]["most"] == 1
  assert words["captions"]["bytes"]["most"] == 300
  assert words["buckets"]["unit"] == "words"


def test_nothing_to_read_has_no_buckets_and_no_record_is_an_error():
  facts, _ = checking.check(InMemory([record(0, prompt="")]), "memory")
  assert facts["buckets"] is None
  assert facts["captions"] == {"of": 1, "empty": 1, "words": {}, "bytes": {}}
  with pytest.raises(ValueError, match="no record"):
    checking.check(InMemory([]), "memory")


def members(count, **more):
  out = {}
  for i in range(count):
    out[f"{i:03d}.jpg"], out[f"{i:03d}.txt"] = jpeg(i), f"caption <{i}> ü".encode()
  return out | {name.replace("_", "."): data for name, data in more.items()}


@pytest.fixture
def folder(tmp_path):
  home = tmp_path / "set"
  home.mkdir()
  write_tar(home / "a.tar", members(7, x_jpg=b"bad", x_txt=b"broken", y_jpg=jpeg(1)))
  return home


def test_the_verb_needs_no_config(folder, tmp_path, capsys):
  report, told = tmp_path / "report", tmp_path / "told.json"
  assert command("check_data")(str(folder), "--json", str(told), "--output", str(report)) == 0
  out = capsys.readouterr().out
  facts = json.loads(told.read_text())
  assert facts == json.loads((report / "report.json").read_text())
  assert (facts["records"], facts["layout"]) == (8, "tars")
  first = {"id": "a.tar:000", "caption": "caption <0> ü", "width": 40, "height": 30}
  assert facts["first"][0] == first
  assert len(facts["first"]) == 5
  assert facts["parts"] == [{"name": "a.tar", "records": 8}]
  assert facts["left_out"] == {
    "keys without caption or picture": {"count": 1, "first": "y.jpg"},
  }
  assert f"{folder}: tars, 8 records" in out
  assert re.search(r"damaged +1 pictures that cannot be decoded, the first a.tar:x: ", out)
  assert re.search(r"left out +1 keys without caption or picture, the first y.jpg", out)
  assert "caption <6>" not in out  # five of them
  page = (report / "report.html").read_text()
  assert page.isascii()
  assert page.count("data:image/jpeg;base64,") == 7
  assert "caption &lt;0&gt; &#252;" in page
  assert "caption <0>" not in page


def test_tokens_of_a_tokenizer(folder, tmp_path, capsys):
  words = ["check", str(folder), "--tokenizer", str(TINY), "--json", str(tmp_path / "a.json")]
  assert cli.main(words) == 0
  facts = json.loads((tmp_path / "a.json").read_text())
  assert facts["captions"]["tokens"]["least"] > 0
  assert not facts["captions"]["template"]
  assert "--tokenizer" not in capsys.readouterr().out


def test_several_paths(folder, tmp_path, capsys):
  other = tmp_path / "other"
  other.mkdir()
  write_tar(other / "b.tar", {"k.npy": npy(np.zeros((4, 8), np.float16)), "k.txt": b"cached"})
  words = ["check", str(folder), str(other), "--json", str(tmp_path / "a.json")]
  assert cli.main(words) == 0
  facts = json.loads((tmp_path / "a.json").read_text())
  assert facts["records"] == 9
  assert [each["records"] for each in facts["sets"]] == [8, 1]
  assert facts["first"] == facts["sets"][0]["first"]
  assert facts["sets"][1]["pictures"]["features"] == {"float16[2x2x8]": 1}
  assert f"{other}: tars, 1 records" in capsys.readouterr().out


def test_a_config_brings_its_tokenizer_its_prompt_and_its_buckets(folder, tmp_path, capsys):
  source = f"blip3o_4b_pretrain:data=pixels,tars={folder},tokenizer={TINY}"
  told = tmp_path / "a.json"
  fields = ["--config.data.holdout=0.9", "--config.data.buckets=(96,448)"]
  assert cli.main(["check", source, *fields, "--json", str(told)]) == 0
  facts = json.loads(told.read_text())
  assert facts["captions"]["template"]
  assert facts["captions"]["tokens"]["least"] > 20  # a caption alone has ten
  assert facts["buckets"]["current"]["buckets"] == [96, 448]
  assert facts["used"]["split"] == "train"
  assert facts["used"]["records"] < 8
  assert "with the prompt around them" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["{home}/absent"], "{home}/absent"),
    (["{home}/empty"], "{home}/empty"),
    (["{home}/set", "--json", "{home}/absent/a.json"], "{home}/absent/a.json: no such folder"),
    (["absent.py"], "absent.py: no such file"),
    (["absent.py", "--caption=txt"], "absent.py: a config says itself"),
    (["{home}/set", "--caption=long:0"], "caption 'long:0'"),
  ],
)
def test_an_error_is_one_line(words, message, folder, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  assert cli.main(["check", *(word.replace("{home}", str(tmp_path)) for word in words)]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert message.replace("{home}", str(tmp_path)) in line


def test_a_field_of_a_config_without_a_config_is_refused(folder, capsys):
  with pytest.raises(SystemExit) as status:
    cli.main(["check", str(folder), "--config.data.holdout=0.5"])
  assert status.value.code == 2
  assert "--config.data.holdout" in capsys.readouterr().err
