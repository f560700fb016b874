"""Rows that show pictures: edits, reconstructions, conversations; equal to what inference makes."""

import dataclasses

from fakes import TINY
from fakes import InMemory
from fakes import parsed
from flax import nnx
import jax
import numpy as np
import pytest

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import batches
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import captions

TOK = Tokenizer.load(TINY, prompts.SPECIAL)
CFG, SETTINGS = released.read(TINY, "float32")  # patches of 14, two by two merged
ASK = batches.Batches(CFG, SETTINGS, TOK)
SIDE = 112  # at most 16 places of 28 x 28 pixels
SIZES = ((112, 112), (84, 140), (56, 150), (30, 31), (400, 220))
NATIVE = dict(image_size=SIDE, buckets=(512,), pictures=3, aspect="native")
RNG = np.random.default_rng(0)


def image(seed, height=SIDE, width=SIDE):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make(task, bucket=0, cfg=CFG, **options):
  data = Data(task=task, **NATIVE | options)
  return blip3o.transforms(cfg, data, TOK)[bucket or data.buckets[-1]]


def valid(out):
  return out["tokens"][out["segments"] > 0].tolist()


def check_pictures(out, found):
  """The first pictures of a row are those of an inference batch, the others absent."""
  count, layout = len(found["patches"]), found["layout"]
  for i in range(len(out["patches"])):
    there = out["patch_segments"][i] > 0
    if i >= count or not layout.segments[i].any():
      assert not any(out[name][i].any() for name in out if name.startswith("patch"))
      continue
    other = layout.segments[i] > 0
    seen = images.normalise(out["patches"][i][there].reshape(-1, 3, 392).swapaxes(1, 2))
    seen = seen.swapaxes(1, 2).reshape(there.sum(), -1)
    np.testing.assert_allclose(seen, found["patches"][i][other], rtol=0, atol=1e-6)
    for name in ("positions", "windows"):
      np.testing.assert_array_equal(out[f"patch_{name}"][i][there], getattr(layout, name)[i][other])


@pytest.mark.parametrize("size", SIZES)
def test_an_understanding_row_begins_as_the_prompt_of_inference(size):
  shown = image(1, *size)
  record = Record(image=shown, prompt="how many?", answer="two", name="r")
  out = make("understand")(record, RNG)
  found = ASK.asking(["how many?"], [shown], max_pixels=SIDE**2)
  asked = found["tokens"][0][found["segments"][0] > 0].tolist()
  assert valid(out) == [*asked, *TOK.encode("two")]
  start = int(np.argmax(out["segments"] > 0))
  np.testing.assert_array_equal(
    out["positions"][:, start : start + len(asked)],
    found["positions"][:, 0, found["segments"][0] > 0],
  )
  np.testing.assert_array_equal(np.diff(out["positions"][:, start + len(asked) :]), 1)
  check_pictures(out, found)


def test_a_row_without_a_picture_has_the_arrays_of_one_with_three():
  transform = make("understand")
  rows = [
    Record(prompt="so?", answer="no", name="text"),
    Record(image=image(0), inputs=(image(1, 56, 84), image(2)), prompt="so?", answer="no"),
  ]
  shapes = [{k: (v.shape, v.dtype) for k, v in transform(r, RNG).items()} for r in rows]
  assert shapes[0] == shapes[1]
  assert shapes[0]["patches"] == ((3, 64, CFG.visual.patch_dim), np.uint8)
  found = ASK.asking(["so?"], [None])
  out = transform(rows[0], RNG)
  asked = found["tokens"][0][found["segments"][0] > 0].tolist()
  assert valid(out) == [*asked, *TOK.encode("no")]
  assert not any(out[name].any() for name in out if name.startswith("patch"))
  batch = Pipeline(
    InMemory([dataclasses.replace(r, name=f"{i}") for i, r in enumerate(rows)]),
    {512: transform},
    Data(task="understand", batch=2, **NATIVE),
  ).batch_at(0)
  assert batch["patches"].shape == (2, 3, 64, CFG.visual.patch_dim)
  assert batch["patch_positions"].shape == (2, 3, 64, 2)


def test_several_pictures_stand_where_they_are_marked():
  sizes = ((112, 112), (56, 84), (28, 112))  # 16, 6 and 4 places
  first, *others = (image(i, *size) for i, size in enumerate(sizes))
  record = Record(
    image=first,
    inputs=tuple(others),
    prompt="<image>one and <image>\ntwo?",
    answer="yes",
    turns=(("here <image>?", "no"), ("sure?", "yes")),
    extra={"placed": True},
  )
  out = make("understand")(record, RNG)
  blocks = [f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (16, 6, 4)]
  text = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{blocks[0]}one and {blocks[1]}\ntwo?<|im_end|>\n"
    "<|im_start|>assistant\nyes<|im_end|>\n"
    f"<|im_start|>user\nhere {blocks[2]}?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    "<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\nyes"
  )
  assert valid(out) == parsed(text)
  said = [i for word in ("yes", "no", "yes") for i in (*TOK.encode(word), TOK.im_end)]
  assert out["labels"][out["labels"] >= 0].tolist() == said
  # After a picture the words go on behind its longer side.
  ids = np.array(valid(out))
  at = out["positions"][:, out["segments"] > 0]
  for start, (high, wide) in zip(
    np.flatnonzero(ids == TOK.vision_start), ((4, 4), (2, 3), (1, 4)), strict=True
  ):
    inside = at[:, start + 1 : start + 1 + high * wide] - at[0, start] - 1
    np.testing.assert_array_equal(inside[0], 0)
    np.testing.assert_array_equal(inside[1:], np.indices((high, wide)).reshape(2, -1))
    after = at[:, start + 1 + high * wide] - at[0, start]
    np.testing.assert_array_equal(after, 1 + max(high, wide))
  for i, each in enumerate((first, *others)):
    found = ASK.asking(["?"], [each], max_pixels=SIDE**2)
    alone = {k: v[i : i + 1] for k, v in out.items() if k.startswith("patch")}
    check_pictures(alone, found)


def test_turns_are_cut_with_their_pictures(warnings):
  record = Record(
    image=image(0),
    inputs=(image(1),),
    prompt="<image>?",
    answer="yes",
    turns=(("<image>?", "no"),),
    extra={"placed": True},
    name="r",
  )
  whole = make("understand").tokens(record)
  data = Data(task="understand", **NATIVE | dict(buckets=(whole - 1, 512), pictures=2))
  made = blip3o.transforms(CFG, data, TOK)
  out = made[whole - 1](record, RNG)
  assert "last 1 of 2 turns" in warnings[0]
  assert (out["tokens"] == TOK.image_pad).sum() == 16
  assert out["patch_segments"].any(1).tolist() == [True, False]
  alone = make("understand")(dataclasses.replace(record, inputs=(), turns=()), RNG)
  assert valid(out) == valid(alone)


def test_a_long_first_question_keeps_its_pictures_whole(warnings):
  record = Record(
    image=image(0),
    inputs=(image(1),),
    prompt=f"one <image> two <image> {'why ' * 90}",
    answer="so",
    extra={"placed": True},
  )
  out = make("understand", buckets=(160,), pictures=2)(record, RNG)
  ids = valid(out)
  assert len(ids) == 160
  assert ids.count(TOK.image_pad) == 32
  assert ids.count(TOK.vision_start) == ids.count(TOK.vision_end) == 2
  assert ids[-len(TOK.encode("so")) :] == TOK.encode("so")
  assert "the question is too long" in warnings[0]


def test_conversations_that_cannot_be_rows():
  shown = dict(image=image(0), prompt="<image>?", answer="yes", name="r")
  placed = {"extra": {"placed": True}}
  transform = make("understand", buckets=(64, 512))
  for record, match, kind in (
    (Record(inputs=(image(1),) * 3, **shown), "shows 4 pictures, but .* data.pictures 3", "lists"),
    (Record(inputs=(image(1),), **shown, **placed), "hold 1 marks <image> for 2 pict", "lists"),
    (Record(**shown | {"image": image(0, 1, 201)}), "r: an image of 201 x 1", "size"),
    (Record(**shown | {"image": image(0, 10, 1000)}), "too thin for data.image_size 112", "size"),
    (Record(**shown | {"image": b"no"}), "r: the image cannot be decoded", None),
  ):
    with pytest.raises(BadRecord, match=match) as error:
      transform(record, RNG)
    assert kind in (None, error.value.kind)
  small = blip3o.transforms(CFG, Data(task="understand", **NATIVE | dict(buckets=(64, 512))), TOK)
  with pytest.raises(BadRecord, match="3 pictures of 48 tokens do not fit a row of 64"):
    small[64](Record(inputs=(image(1),) * 2, **shown), RNG)


@pytest.mark.parametrize("size", SIZES)
def test_an_edit_row_is_the_prompt_of_inference(size):
  record = Record(image=image(0), inputs=(image(1, *size),), prompt="make it red", name="r")
  out = make("edit")(record, RNG)
  found = ASK.drawing(["make it red"], record.inputs, max_pixels=SIDE**2)
  assert valid(out) == found["tokens"][0][found["segments"][0] > 0].tolist()
  check_pictures(out, found)
  np.testing.assert_array_equal(out["images"], image(0))


def test_edits_of_none_and_of_several_have_the_same_arrays(tmp_path):
  transform = make("edit")
  none = Record(image=image(0), prompt="a star", name="r")
  several = dataclasses.replace(none, inputs=(image(1), image(2, 56, 84)))
  rows = [transform(each, RNG) for each in (none, several)]
  shapes = [{k: (v.shape, v.dtype) for k, v in row.items()} for row in rows]
  assert shapes[0] == shapes[1]
  assert valid(rows[0]) == prompts.generation_ids(TOK, "a star")
  assert not rows[0]["patch_segments"].any()
  blocks = [f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (16, 6)]
  text = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{''.join(blocks)}\na star<|im_end|>\n<|im_start|>assistant\n"
  )
  assert valid(rows[1]) == [*parsed(text), TOK.image_start]
  cached = np.zeros((4, 4, 6), np.float16)
  out = make("edit", features=True)(dataclasses.replace(several, image=None, features=cached), RNG)
  assert out["features"].shape == (4, 4, 6)
  assert "images" not in out
  assert out["patch_segments"].any(1).tolist() == [True, True, False]
  with pytest.raises(BadRecord, match="shows 4 pictures, but a row has room for"):
    transform(dataclasses.replace(several, inputs=(image(1),) * 4), RNG)


@pytest.mark.parametrize("form", ["inference", "training"])
def test_a_reconstruction_shows_what_it_asks_for(form):
  shown = image(0, 140, 200)
  cfg = dataclasses.replace(CFG, prompt_form=form)
  transform = make("reconstruct", cfg=cfg, pictures=1, aspect="square")
  out = transform(Record(image=shown, prompt="a caption", name="r"), RNG)
  assert valid(out) == prompts.reconstruction_ids(TOK, 16, form=form)
  if form == "inference":  # what a user asks for by the same words
    same = ASK.drawing([prompts.RECONSTRUCT], [out["images"]], max_pixels=SIDE**2)
    assert valid(out) == same["tokens"][0][same["segments"][0] > 0].tolist()
    check_pictures(out, same)
  assert transform.tokens(Record(prompt="a caption")) == len(valid(out))
  with pytest.raises(BadRecord, match="r: no image"):
    transform(Record(prompt="a caption", name="r"), RNG)


def test_lengths_hold_whatever_the_record_becomes():
  """Of the words alone: as long as the row may get."""
  cases = [
    ("understand", Record(image=image(0, 56, 84), inputs=(image(1),), prompt="?", answer="yes")),
    ("edit", Record(image=image(0), inputs=(image(1), image(2, 30, 31)), prompt="make it red")),
    ("edit", Record(image=image(0), prompt="a star")),
    ("generate", Record(image=image(0), prompt="a star", extra={"other": "a long caption of it"})),
  ]
  for task, record in cases:
    options = {} if task == "understand" else dict(drop_captions=0.4, swap_captions=0.4)
    if task == "generate":
      options |= dict(pictures=1, aspect="square")
    transform = make(task, **options)
    count = len(record.inputs) + 1
    words = dataclasses.replace(
      record,
      image=None,
      inputs=(),
      extra={**record.extra, "pictures": count, "inputs": len(record.inputs)},
    )
    most = transform.tokens(words)
    assert most == transform.tokens(record)
    rows = [len(valid(transform(record, np.random.default_rng(i)))) for i in range(20)]
    assert max(rows) <= most
    if task == "generate":
      assert max(rows) == most
      assert len(set(rows)) == 3


def test_captions_are_dropped_and_swapped_in_their_shares(monkeypatch):
  lines = []
  monkeypatch.setattr(captions.logging, "log_first_n", lambda _, text, n, *args: lines.append(args))
  options = dict(pictures=1, aspect="square", drop_captions=0.25, swap_captions=0.5)
  transform = make("generate", **options)
  record = Record(image=image(0), prompt="own", extra={"other": "another"}, name="r")
  kinds = {
    name: prompts.generation_ids(TOK, text)
    for name, text in {"own": "own", "other": "another", "none": ""}.items()
  }
  rows = [transform(record, np.random.default_rng((7, i)))["tokens"] for i in range(400)]
  found = [
    next(name for name, ids in kinds.items() if row[-len(ids) :].tolist() == ids) for row in rows
  ]
  shares = {name: found.count(name) / 400 for name in kinds}
  assert shares["none"] == pytest.approx(0.25, abs=0.07)
  assert shares["other"] == pytest.approx(0.375, abs=0.08)
  again = [transform(record, np.random.default_rng((7, i)))["tokens"] for i in range(20)]
  np.testing.assert_array_equal(rows[:20], again)
  assert not lines
  alone = dataclasses.replace(record, extra={})
  seen = {tuple(valid(transform(alone, np.random.default_rng(i)))) for i in range(30)}
  assert seen == {tuple(kinds["own"]), tuple(kinds["none"])}
  assert lines[0] == ("r",)


@pytest.mark.parametrize("task", ["edit", "reconstruct", "understand"])
def test_batches_are_what_the_loss_takes(task):
  weights = dict(image=0.0, text=1.0) if task == "understand" else {}
  cfg = dataclasses.replace(CFG, loss=blip3o.Loss(**weights))
  options = dict(pictures=1, aspect="square") if task == "reconstruct" else {}
  record = Record(image=image(0), inputs=(image(1, 56, 84),), prompt="?", answer="yes")
  row = make(task, cfg=cfg, **options)(record, RNG)
  batch = {name: np.stack([v, v]) for name, v in row.items()}
  if task != "understand":
    del batch["images"]
    batch["features"] = np.zeros((2, cfg.grid, cfg.grid, cfg.channels), np.float16)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: blip3o.build(cfg, nnx.Rngs(0))))

  def loss(state, batch):
    module = nnx.merge(graphdef, state)
    return module.loss(batch, jax.random.key(0), module.weights(batch))

  value, metrics = jax.eval_shape(loss, state, batch)
  assert value.shape == ()
  assert f"{'text' if task == 'understand' else 'image'}_loss" in metrics


def test_stored_lengths_are_named_by_what_decides_them():
  square = dict(pictures=1, aspect="square")
  same = make("understand", buckets=(400,), pictures=2).counts
  assert make("understand").counts == same
  assert make("understand", aspect="square", bucket=512, buckets=(300, 512)).counts == same
  other = [
    make("edit").counts,
    make("edit", swap_captions=0.5).counts,
    make("reconstruct", **square).counts,
    make("generate", **square).counts,
    make("generate", **square, cfg=dataclasses.replace(CFG, prompt_form="training")).counts,
    make("understand", image_size=140).counts,
  ]
  assert len({same, *other}) == len(other) + 1
  assert Tokenizer.load(TINY, chat.QWEN).fingerprint == TOK.fingerprint


def test_options_that_a_task_does_not_read_are_refused():
  dumb = dataclasses.replace(CFG, parts=("denoiser", "encoder"))
  for task, options, cfg, match in (
    ("generate", {}, CFG, "pictures 3: task 'generate' does not read it, so leave it at 1"),
    ("reconstruct", dict(pictures=1), CFG, "aspect 'native': task 'reconstruct'"),
    ("understand", dict(drop_captions=0.1), CFG, "drop_captions 0.1: task 'understand'"),
    ("edit", dict(image_size=0), CFG, "image_size: 0, but task 'edit' shows pictures"),
    ("edit", {}, dumb, "'edit' shows pictures, which needs the part 'visual'"),
    ("edit", dict(buckets=(60, 80)), CFG, "80 does not hold the prompt's template and 48 image"),
    ("edit", dict(buckets=(20, 512)), CFG, "20 does not hold the prompt's template, "),
    ("understand", dict(buckets=(60, 70)), CFG, "70 does not hold the chat template and 48 image"),
  ):
    with pytest.raises(ValueError, match=match):
      make(task, cfg=cfg, **options)
