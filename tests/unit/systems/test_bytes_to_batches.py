"""Every layout from its bytes to batches that BLIP3-o trains on: the rows of its records, whole."""

import json

from fakes import TINY
from fakes import jpeg
from fakes import write_tar
from layouts import ALL
from layouts import lines
from layouts import put
import numpy as np
import pytest

from blip3o_jax import cli
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released

TOK = Tokenizer.load(TINY, prompts.SPECIAL)
CFG = released.read(TINY, "float32")[0]
BUCKETS = (250, 400)


def batches(path, task, pictures=1, **reading):
  """The rows of two epochs by record, and the records."""
  data = Data(
    path=str(path),
    reading=Reading(**reading),
    task=task,
    batch=2,
    image_size=56,
    buckets=BUCKETS,
    pictures=pictures,
    threads=2,
    strict=True,
  )
  source = open_source(data)
  made = blip3o.transforms(CFG, data, TOK)
  p = Pipeline(source, made, data)
  found = {}
  for step in range(2 * p.steps_per_epoch):
    batch, bucket = p.batch_at(step), p.bucket_at(step)
    assert batch["tokens"].shape == (2, bucket)
    for row, record in enumerate(p.ids_at(step)):
      found[record] = (bucket, {name: value[row] for name, value in batch.items()})
  for record, (bucket, row) in found.items():
    again = made[bucket](source[record], np.random.default_rng(0))
    assert made[bucket].tokens(source.words(record)) == made[bucket].tokens(source[record])
    for name, value in again.items():
      np.testing.assert_array_equal(row[name], value, err_msg=name)
  assert len(found) >= min(len(source), 2)
  return found, source


@pytest.mark.parametrize("name", ALL)
def test_public_sets(name, tmp_path):
  path, reading, expected = ALL[name](tmp_path)
  most = max(inputs for _, inputs in expected)
  found, _ = batches(path, "edit" if most else "generate", max(most, 1), **reading)
  for record, (_, row) in found.items():
    prompt, inputs = expected[record]
    text = TOK.decode(row["tokens"][row["segments"] > 0])
    assert prompt in text
    assert row["images"].dtype == np.uint8
    if most:
      shown = (row["patch_segments"] > 0).reshape(most, -1).any(1)
      assert shown.sum() == inputs


def folder(home):
  """Six pictures with captions, and their tar."""
  home.mkdir()
  members = {}
  for i in range(6):
    members |= {f"{i}.jpg": jpeg(i), f"{i}.txt": b"caption %d" % i}
  write_tar(home / "a.tar", members)
  return home


@pytest.mark.parametrize("form", ["arrayrecord", "tfds"])
def test_sets_that_were_packed_give_the_rows_of_the_tars(form, tmp_path):
  tars = folder(tmp_path / "tars")
  where = tmp_path / "packed"
  more = ["--format", "tfds", "--name", "mine"] if form == "tfds" else []
  assert cli.main(["pack", str(tars), "--output", str(where), *more]) == 0
  if form == "tfds":
    (info,) = where.rglob("dataset_info.json")
    where = info.parent
  plain, _ = batches(tars, "generate")
  packed, source = batches(where, "generate")
  rows = {source[record].prompt: row for record, (_, row) in packed.items()}
  assert len(rows) >= 4
  for record, (_, row) in plain.items():
    other = rows.get(f"caption {record}")
    for name, value in row.items():
      if other is not None:
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("form", ["llava", "messages", "text"])
def test_conversations(form, tmp_path):
  rows = []
  for i in range(4):
    put(tmp_path, f"{i}.jpg", jpeg(i, 30 + i, 40))
    answer = f"answer {i}"
    if form == "messages":
      said = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": answer}]
      rows.append({"images": [f"{i}.jpg"], "messages": said})
    else:
      mark = "<image>\n" * (form == "llava")
      said = [{"from": "human", "value": f"{mark}what?"}, {"from": "gpt", "value": answer}]
      rows.append({"id": i, "conversations": said} | ({"image": f"{i}.jpg"} if mark else {}))
  put(tmp_path, "list.jsonl", lines(rows))
  found, _ = batches(tmp_path / "list.jsonl", "understand")
  for record, (_, row) in found.items():
    labels = row["labels"][row["labels"] >= 0]
    assert f"answer {record}" in TOK.decode(labels)
    assert (row["patch_segments"] > 0).any() == (form != "text")


def test_cached_features_and_a_list_joined_to_tars(tmp_path):
  home = folder(tmp_path / "tars")
  (tmp_path / "list.json").write_text(
    json.dumps([{"file": f"{i}.jpg", "said": f"other words {i}"} for i in range(6)])
  )
  found, source = batches(
    home, "generate", joined=str(tmp_path / "list.json"), join="file", caption="said"
  )
  assert {source[i].prompt for i in range(6)} == {f"other words {i}" for i in range(6)}
  assert len(found) >= 4
