"""Tasks of Nexus-Gen: rows as the release's template makes them, pictures as its scripts do."""

import dataclasses
import json
from pathlib import Path

from fakes import InMemory
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen.model import batch_spec
from blip3o_jax.systems.nexus_gen.talks import Talk
from blip3o_jax.systems.nexus_gen.tasks import transforms

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny-nexus-gen"
GOLD = load_file(TINY / "io.safetensors")
TOK = Tokenizer.load(TINY, prompts.SPECIAL)
CFG, _ = released.read(TINY, "float32")
SMALL = dataclasses.replace(CFG, form=prompts.Form(max_pixels=252**2))
PHOTO = (DATA / "preprocess" / "photo_420.jpg").read_bytes()
RNG = np.random.default_rng(0)
SLOT = CFG.image_token


def picture(seed, height=56, width=112):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


CAPTION = Record(image=picture(0), prompt="A vibrant street with colorful houses.", name="caption")
EDIT = Record(
  image=picture(1), inputs=(picture(2),), prompt="Change the sign to a pot.", name="edit"
)
ASKED = Record(
  image=picture(3), prompt="What is this?", answer="A grey stone wall in the sun.", name="asked"
)
# A conversation that draws, looks and draws again, in the form that `Reading.whole` gives.
TALK = Record(
  image=picture(4),
  inputs=(picture(5), picture(6), picture(7), picture(8)),
  prompt="<image> and <image>: what?",
  answer="Here: <image> and <image>.",
  turns=(("Again, as <image>", "No."),),
  extra={"placed": True, "system": "Be kind."},
  name="talk",
)


def made(record, task="messages", cfg=SMALL, bucket=480, pictures=5, **more):
  more = {"task": task, "buckets": (bucket,), "pictures": pictures} | more
  return transforms(cfg, Data(**more), TOK)[bucket](record, RNG)


FIVE = Data(task="messages", buckets=(480,), pictures=5)

# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["messages", "own"])
@pytest.mark.parametrize(
  ("row", "record", "own"),
  [(0, CAPTION, "generate"), (1, EDIT, "edit"), (2, ASKED, "understand")],
)
def test_rows_are_those_of_the_training_batch(row, record, own, task):
  """Its rows also close the last answer, which predicts nothing."""
  count = int(GOLD["train.attention_mask"][row].sum()) - 2
  ids, labels = GOLD["train.input_ids"][row], GOLD["train.labels"][row]
  assert list(ids[count : count + 2]) == [TOK.im_end, *TOK.encode("\n")]
  out = made(record, own if task == "own" else task)
  np.testing.assert_array_equal(out["tokens"][-count:], ids[:count])
  assert (out["tokens"][:-count] == TOK.pad).all()
  np.testing.assert_array_equal(out["segments"], np.arange(480) >= 480 - count)
  predicted = np.where(labels == -100, -1, labels)[1 : count + 1]
  np.testing.assert_array_equal(out["labels"][-count:], predicted)
  assert (out["labels"][:-count] == -1).all()
  positions = GOLD["train.position_ids"][:, row, :count]
  np.testing.assert_array_equal(out["positions"][:, -count:], positions)


def test_patches_are_all_pictures_in_order_as_the_tower_takes_them():
  out = made(EDIT, pictures=3)
  counts = (out["patch_segments"] > 0).sum(-1)
  assert counts.tolist() == [32, 324, 0]
  given = images.patchify(EDIT.inputs[0])
  np.testing.assert_array_equal(out["patches"][0, :32], given)
  squashed = images.square(Image.fromarray(EDIT.image), 252, squash=True)
  np.testing.assert_array_equal(out["patches"][1, :324], images.patchify(squashed))
  alone = made(CAPTION, "generate", cfg=CFG, pictures=1)
  assert alone["patches"].shape == (1, 324, 1176)  # no room for inputs, which it never shows
  assert made(ASKED, cfg=CFG, pictures=1, bucket=512)["patches"].shape == (1, 1340, 1176)


def test_pictures_of_a_conversation_belong_to_who_shows_them():
  out = made(TALK)
  assert ((out["patch_segments"] > 0).sum(-1)).tolist() == [32, 32, 324, 324, 32]
  tokens, labels = out["tokens"], out["labels"]
  assert (tokens == SLOT).sum() == 3 * 8 + 2 * 81
  # A slot is predicted one place before it, and only slots of the assistant are.
  assert (labels == SLOT).sum() == 2 * 81
  assert (tokens[1:][labels[:-1] == SLOT] == SLOT).all()
  assert (labels == TOK.vision_start).sum() == (labels == TOK.vision_end).sum() == 2
  assert (labels == TOK.im_end).sum() == 2
  text = TOK.decode(tokens[out["segments"] > 0], skip_special=False).replace("<|image_pad|>", "")
  shown = "<|vision_start|><|vision_end|>"
  assert text == (
    "<|im_start|>system\nBe kind.<|im_end|>\n"
    f"<|im_start|>user\n{shown} and {shown}: what?<|im_end|>\n"
    f"<|im_start|>assistant\nHere: {shown} and {shown}.<|im_end|>\n"
    f"<|im_start|>user\nAgain, as {shown}<|im_end|>\n<|im_start|>assistant\nNo."
  )


def test_turns_that_do_not_fit_take_their_pictures_with_them():
  length = int((made(TALK)["segments"] > 0).sum())
  out = Talk(SMALL, FIVE, TOK, length - 1)(TALK, RNG)
  assert ((out["patch_segments"] > 0).sum(-1)).tolist() == [32, 32, 324, 324, 0]
  assert (out["labels"] == TOK.im_end).sum() == 1
  with pytest.raises(
    BadRecord, match="talk: a limit of 160 tokens does not hold the chat template"
  ):
    Talk(SMALL, FIVE, TOK, 160)(TALK, RNG)


def test_chinese_templates():
  chinese = dataclasses.replace(SMALL, form=prompts.Form("zh", 252**2))
  for record, user, said in (
    (CAPTION, f"根据以下描述生成一张图像：{CAPTION.prompt}", "这是根据您的描述生成的图像："),
    (EDIT, f" {EDIT.prompt}", "以下为编辑后的图像："),
  ):
    out = made(record, cfg=chinese)
    text = TOK.decode(out["tokens"][out["segments"] > 0], skip_special=False)
    assert f"{user}<|im_end|>\n<|im_start|>assistant\n{said}<|vision_start|>" in text


def test_lengths_are_those_of_the_largest_row():
  make = transforms(SMALL, FIVE, TOK)[480]
  for record, shown in ((CAPTION, 0), (EDIT, 1), (ASKED, 1), (TALK, 3)):
    inputs = len(record.inputs)
    extra = {**record.extra, "pictures": 1 + inputs, "inputs": inputs}
    words = dataclasses.replace(record, image=None, inputs=(), extra=extra)
    count = int((make(record, RNG)["segments"] > 0).sum())
    # Without the pictures nobody knows that these have 8 places and not all 81.
    assert make.tokens(record) == make.tokens(words) == count + 73 * shown
  assert make.counts != transforms(CFG, Data(task="messages", buckets=(480,)), TOK)[480].counts


def test_messages_of_a_list(tmp_path):
  """A row of the release's data format is one record, its roles those of its messages."""
  names = []
  for i, each in enumerate((TALK.image, *TALK.inputs)):
    Image.fromarray(each).save(tmp_path / f"{i}.png")
    names.append(f"{i}.png")
  turns = ((TALK.prompt, TALK.answer), *TALK.turns)
  said = [{"role": "system", "content": "Be kind."}]
  for asked, answer in turns:
    said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
  talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  lines = [
    {"id": "a", "images": names, "messages": said},
    {"id": "b", "images": [], "messages": talk},
  ]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  data = Data(
    path=str(tmp_path),
    reading=Reading(whole=True),
    task="messages",
    batch=1,
    buckets=(64, 480),
    pictures=5,
    shuffle=False,
  )
  source = open_source(data)
  assert len(source) == 2
  assert len(open_source(dataclasses.replace(data, reading=Reading()))) == 3
  pipeline = Pipeline(source, transforms(SMALL, data, TOK), data)
  found = {pipeline.bucket_at(step): pipeline.batch_at(step) for step in range(2)}
  wanted = made(TALK)
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[480][name][0], value)
  assert found[64]["patches"].shape == found[480]["patches"].shape
  assert not found[64]["patch_segments"].any()


# Pictures -----------------------------------------------------------------------------------------


def test_preprocessing_is_the_releases():
  shown = made(Record(image=PHOTO, prompt="q", answer="a"), cfg=CFG, bucket=512, pictures=1)
  grid = GOLD["pre.input_u8"].shape[:2]
  count = grid[0] * grid[1] // 196
  assert (shown["patch_segments"] > 0).sum() == count
  patches = images.patchify(GOLD["pre.input_u8"])
  np.testing.assert_array_equal(shown["patches"][0, :count], patches)
  assert int(GOLD["pre.input_max_pixels"]) == CFG.form.max_pixels
  drawn = made(Record(image=PHOTO, prompt="q"), "generate", cfg=CFG, pictures=1)
  np.testing.assert_array_equal(drawn["patches"][0], images.patchify(GOLD["pre.target_u8"]))
  values = images.patchify(images.normalise(GOLD["pre.target_u8"]))
  np.testing.assert_allclose(values, GOLD["pre.target_pixel_values"], rtol=0, atol=1e-6)


def stage(name, **form):
  return dataclasses.replace(CFG, stage=name, form=prompts.Form(**form))


TOLD = dataclasses.replace(stage("generation"), told="predicted")


def test_what_the_generation_decoder_is_trained_on():
  out = made(Record(image=PHOTO), "generate", cfg=stage("generation"), pictures=1, image_size=512)
  assert sorted(out) == ["images", "pixels"]
  np.testing.assert_array_equal(out["images"], GOLD["pre.generation_condition_u8"])
  np.testing.assert_array_equal(out["pixels"], GOLD["pre.decoder_target_u8"])


def test_what_a_generation_decoder_is_told_of_captions():
  """The row that predicts a picture of the caption, with nothing of the picture itself."""
  record = dataclasses.replace(CAPTION, image=PHOTO)
  out = made(record, "generate", cfg=TOLD, pictures=1, image_size=512)
  np.testing.assert_array_equal(out["pixels"], GOLD["pre.decoder_target_u8"])
  asked = made(record, "generate", cfg=SMALL, pictures=1)
  for name in ("tokens", "segments", "labels", "positions"):
    np.testing.assert_array_equal(out[name], asked[name])
  assert sorted(out) == ["labels", "pixels", "positions", "segments", "tokens"]
  alone = dataclasses.replace(TOLD, parts=("visual", "generator"))
  with pytest.raises(ValueError, match=r"'language', or data\.features"):
    made(record, "generate", cfg=alone, pictures=1, image_size=512)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_what_the_editing_decoder_is_trained_on(resample):
  cfg = stage("editing", resample=resample, max_pixels=252**2)
  source = picture(9, 56, 84)
  record = Record(image=PHOTO, inputs=(source,), prompt="Change the sign to a pot.")
  out = made(record, "edit", cfg=cfg, bucket=240, pictures=1, image_size=512)
  np.testing.assert_array_equal(out["pixels"], GOLD["pre.decoder_target_u8"])
  again = dataclasses.replace(record, image=None, inputs=(PHOTO,))
  data = Data(task="edit", buckets=(512,), image_size=512)
  told = transforms(stage("editing", resample=resample), data, TOK)[512].told(again, RNG)
  np.testing.assert_array_equal(told["images"], GOLD[f"pre.reference_{resample}_u8"])
  rows = images.normalise(told["images"])
  if resample == "bilinear":
    found = images.patchify(rows)[GOLD["pre.reference_rows"]]
    np.testing.assert_allclose(found, GOLD["pre.reference_pixel_rows"], rtol=0, atol=1e-6)
  # The row is the reference's single pass, without the turn's end and the dummy picture.
  ids = GOLD["single.input_ids"][0]
  count = len(ids) - 2
  np.testing.assert_array_equal(out["tokens"][-count:], ids[:count])
  assert (out["patch_segments"] > 0).sum() == 24
  assert (out["labels"] == SLOT).sum() == 81


def test_batches_have_the_arrays_of_the_spec():
  for cfg, data, record in (
    (CFG, Data(task="edit", buckets=(512,), pictures=2), EDIT),
    (stage("generation"), Data(task="generate", buckets=(512,), image_size=512), CAPTION),
    (TOLD, Data(task="generate", buckets=(512,), image_size=512), CAPTION),
    (stage("editing"), Data(task="edit", buckets=(512,), image_size=512), EDIT),
  ):
    out = transforms(cfg, data, TOK)[512](record, RNG)
    spec = batch_spec(cfg, 1, 512)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
      k: (v.shape[1:], v.dtype) for k, v in spec.items()
    }


def test_cached_features_need_neither_tokenizer_nor_tower():
  features = np.random.default_rng(0).normal(size=(1, 405, 64)).astype(np.float16)
  for name, task, parts in (
    ("generation", "generate", ("generator", "autoencoder", "constants")),
    ("editing", "edit", ("editor", "autoencoder", "constants")),
  ):
    cfg = dataclasses.replace(stage(name), parts=parts)
    data = Data(task=task, image_size=64, features=True, buckets=(64, 160))
    ((bucket, make),) = transforms(cfg, data, None).items()
    assert (bucket, make.counts, make.tokens(EDIT)) == (64, "", 0)
    out = make(Record(image=PHOTO, features=features), RNG)
    assert sorted(out) == ["features", "pixels"]
    np.testing.assert_array_equal(out["features"], features)
    with pytest.raises(BadRecord, match="no cached features"):
      make(Record(image=PHOTO), RNG)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("cfg", "change", "text"),
  [
    (CFG, dict(task="reconstruct"), "'reconstruct' is not one of generate, edit"),
    (stage("generation"), dict(task="edit"), "'edit' is not one of generate"),
    (CFG, dict(features=True), "features True: task 'edit' does not read it"),
    (CFG, dict(buckets=(160, 300)), "300 does not hold the template and 416 image tokens"),
    (CFG, dict(pictures=1), "pictures: 1 has no room for a picture and what comes of it"),
    (
      dataclasses.replace(CFG, boi=7),
      {},
      r"config.model.boi: 7, but the tokenizer's <\|vision_start\|> is 501",
    ),
    (
      dataclasses.replace(CFG, parts=("language",)),
      {},
      "needs the part 'visual'",
    ),
    (stage("editing"), dict(image_size=100, pictures=1), "not a multiple of 16"),
    (
      dataclasses.replace(stage("editing"), parts=("visual", "editor")),
      dict(image_size=512, pictures=1),
      "needs the part 'language', or data.features",
    ),
  ],
)
def test_data_that_does_not_fit(cfg, change, text):
  data = Data(**(dict(task="edit", pictures=2, buckets=(512,)) | change))
  with pytest.raises(ValueError, match=text):
    transforms(cfg, data, TOK)


def test_a_tokenizer_is_needed():
  with pytest.raises(ValueError, match=r"config\.tokenizer: task 'generate' needs"):
    transforms(CFG, Data(task="generate"), None)


@pytest.mark.parametrize(
  ("record", "task", "more", "text"),
  [
    (
      EDIT,
      "generate",
      {},
      "edit: config.data.task 'generate' takes no edit; 'edit' and 'messages'",
    ),
    (CAPTION, "understand", {}, "caption: config.data.task 'understand' takes no caption"),
    (TALK, "understand", {}, "talk: an answer holds a picture; config.data.task 'messages' draws"),
    (TALK, "messages", dict(pictures=4), "talk: shows 5 pictures, but a row has room for"),
    (dataclasses.replace(CAPTION, image=None), "generate", {}, "caption: no image"),
    (dataclasses.replace(CAPTION, prompt=" "), "messages", {}, "neither a caption nor an answer"),
    (CAPTION, "messages", dict(image_size=0), "caption: has a picture, but data.image_size is 0"),
    (
      dataclasses.replace(TALK, inputs=TALK.inputs[:1]),
      "messages",
      {},
      "talk: 5 marks <image> for 2 pictures",
    ),
  ],
)
def test_records_that_cannot_be_used(record, task, more, text):
  with pytest.raises(BadRecord, match=text):
    made(record, task, **more)


def test_a_special_string_in_a_text_stays_text():
  record = dataclasses.replace(CAPTION, prompt="a <image> of <|image_pad|> and {}")
  out = made(record)
  assert (out["tokens"] == SLOT).sum() == 81
  assert "a <image> of <|image_pad|> and {}" in TOK.decode(out["tokens"], skip_special=False)
  talk = dataclasses.replace(ASKED, answer="an <image>, so", prompt="which <image>?")
  assert (made(talk)["tokens"] == SLOT).sum() == 8


def test_an_edit_of_several_pictures_is_none_for_the_editing_decoder():
  cfg = stage("editing", max_pixels=252**2)
  record = dataclasses.replace(EDIT, inputs=EDIT.inputs * 2)
  with pytest.raises(BadRecord, match="edit: 2 pictures to edit, expected one"):
    made(record, "edit", cfg=cfg, pictures=1, image_size=512)


def test_one_of_two_captions_is_trained_on():
  data = Data(task="generate", buckets=(300,), swap_captions=0.5)
  make = transforms(SMALL, data, TOK)[300]
  record = dataclasses.replace(CAPTION, extra={"other": "b" * 60})
  rng = np.random.default_rng(1)
  lengths = {int((make(record, rng)["segments"] > 0).sum()) for _ in range(20)}
  assert len(lengths) == 2
  assert make.tokens(record) == max(lengths)
  assert "either caption" in make.counts


def test_a_pipeline_of_mixed_records():
  data = Data(task="messages", batch=2, buckets=(128, 320), pictures=2, shuffle=False)
  text = Record(prompt="why?", answer="so", name="text")
  records = [CAPTION, EDIT, ASKED, text] * 2
  pipeline = Pipeline(InMemory(records), transforms(SMALL, data, TOK), data)
  for step in range(pipeline.steps_per_epoch):
    batch = pipeline.batch_at(step)
    assert batch["patches"].shape == (2, 2, 324, 1176)
    assert batch["tokens"].shape == (2, pipeline.bucket_at(step))
  assert pipeline.replaced == 0
