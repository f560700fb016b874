"""Small sets on disk in the layouts of public ones: what lies in their files, with drawn pictures.

Each function makes a set in a folder and returns (path, arguments of `Reading`, what its records
are: [(prompt, number of input pictures)] in order). The documentation's table is read from here.
"""

import io
import json

from fakes import jpeg
from fakes import write_tar
from PIL import Image


def picture(seed, side=24):
  """A PNG of one colour that only this seed has."""
  out = io.BytesIO()
  Image.new("RGB", (side, side + seed % 5), (seed % 256, 7 * seed % 256, 90)).save(out, "PNG")
  return out.getvalue()


def put(home, name, data):
  """Writes a file of bytes, or of a value as JSON, with the folders that it needs."""
  path = home / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
  return path


def lines(rows):
  return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def table(path, rows, **columns):
  """A parquet file of rows in groups of two; columns: pyarrow's types of those named."""
  import pyarrow
  from pyarrow import parquet

  names = list(rows[0])
  arrays = [pyarrow.array([row.get(n) for row in rows], columns.get(n)) for n in names]
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.table(arrays, names=names), path, row_group_size=2)
  return path


def blip3o_long(home):
  """BLIP3o-Pretrain-Long-Caption and -Short-Caption."""
  for shard in range(2):
    members = {}
    for i in range(2):
      key = f"{shard}{i:05d}"
      members[f"{key}.jpg"] = jpeg(10 * shard + i)
      members[f"{key}.txt"] = f"A long caption of shard {shard}, number {i}.".encode()
    write_tar(home / f"sa_{shard:06d}.tar", members)
  said = [(f"A long caption of shard {s}, number {i}.", 0) for s in range(2) for i in range(2)]
  return home, {}, said


def blip3o_short(home):
  """BLIP3o-Pretrain-Short-Caption."""
  write_tar(
    home / "00000.tar", {"0.jpg": jpeg(0), "0.txt": b"a cat", "1.jpg": jpeg(1), "1.txt": b"x"}
  )
  return home, {}, [("a cat", 0), ("x", 0)]


def journeydb(home):
  """JourneyDB as it was published: data/train, a list beside a folder of pictures."""
  rows = [{"img_path": f"./00{i}/{i:05d}.jpg", "caption": f"a journey {i}"} for i in range(3)]
  for i in range(3):
    put(home, f"data/train/imgs/00{i}/{i:05d}.jpg", jpeg(i))
  put(home, "data/train/train_caption_only.jsonl", lines(rows))
  return home / "data" / "train", {"images": "imgs"}, [(f"a journey {i}", 0) for i in range(3)]


def blip3o_60k(home):
  """BLIP3o-60k: a tar for each source of prompts."""
  for name in ("dalle3", "geneval_train"):
    write_tar(
      home / f"{name}.tar", {f"{name}_0.jpg": jpeg(1), f"{name}_0.txt": f"of {name}".encode()}
    )
  return home, {}, [("of dalle3", 0), ("of geneval_train", 0)]


def sharegpt_4o_image(home):
  """ShareGPT-4o-Image: two lists, and tars that hold their pictures."""
  put(
    home,
    "text_to_image.json",
    [{"input_prompt": f"draw {i}", "output_image": f"image/t2i_{i}.png"} for i in range(2)],
  )
  edit = {"input_prompt": "join them", "input_image": ["image/v2v_0.png", "image/v2v_1.png"]}
  put(home, "text_and_image_to_image.json", [edit | {"output_image": "image/v2v_2.png"}])
  write_tar(home / "text_to_image_part_0.tar", {f"image/t2i_{i}.png": picture(i) for i in range(2)})
  for part, names in enumerate([(0, 1), (2,)]):
    members = {f"image/v2v_{i}.png": picture(10 + i) for i in names}
    write_tar(home / f"text_and_image_to_image_part_{part}.tar", members)
  return home, {}, [("join them", 2), ("draw 0", 0), ("draw 1", 0)]


def text_to_image_2m(home):
  """text-to-image-2M: data_512_2M, prompts in KEY.json."""
  members = {}
  for i in range(2):
    members[f"{i:08d}.jpg"] = jpeg(i)
    members[f"{i:08d}.json"] = json.dumps({"prompt": f"prompt {i}"}).encode()
  (home / "data_512_2M").mkdir()
  write_tar(home / "data_512_2M" / "data_000000.tar", members)
  return home / "data_512_2M", {"caption": "prompt"}, [("prompt 0", 0), ("prompt 1", 0)]


def cc12m(home):
  """CC12M as WebDataset: captions twice, what describes the set beside the tars."""
  members = {}
  for i in range(2):
    members[f"{i:09d}.jpg"], members[f"{i:09d}.txt"] = jpeg(i), f"web text {i}".encode()
    members[f"{i:09d}.json"] = json.dumps({"caption": f"web text {i}", "width": 40}).encode()
  write_tar(home / "cc12m-train-0000.tar", members)
  put(home, "_info.json", {"shards": {}})
  return home, {"caption": "txt"}, [("web text 0", 0), ("web text 1", 0)]


def imgedit(home):
  """ImgEdit: tables of names, single edits and several after each other; tars in parts."""
  single = {"input_images": ["results_add/1/original.png"]}
  single |= {"output_images": ["results_add/1/result.png"], "prompt": "add a hat"}
  table(home / "Parquet" / "add_part0.parquet", [single])
  turns = [
    {
      "input_images": [f"results_memory/1/origin_{i}.png"],
      "output_images": [f"results_memory/1/result_{i}.png"],
      "prompt": f"turn {i}",
    }
    for i in range(2)
  ]
  table(home / "Parquet" / "content_memory_part0.parquet", [{"data": turns}])
  names = ["results_add/1/original.png", "results_add/1/result.png"]
  _split_tar(home / "Singleturn", "add_part0", {n: picture(i) for i, n in enumerate(names)})
  names = [f"results_memory/1/{what}_{i}.png" for i in range(2) for what in ("origin", "result")]
  _split_tar(home / "Multiturn", "content_part0", {n: picture(9 + i) for i, n in enumerate(names)})
  said = [("add a hat", 1), ("turn 0", 1), ("turn 1", 1)]
  return home / "Parquet", {"images": str(home)}, said


def _split_tar(folder, name, members):
  folder.mkdir()
  data = write_tar(folder / "whole", members).read_bytes()
  (folder / "whole").unlink()
  for part, start in enumerate(range(0, len(data), 3000)):
    put(folder, f"{name}.tar.split.{part:03d}", data[start : start + 3000])


def gpt_image_edit(home):
  """GPT-Image-Edit-1.5M: data.txt names folders of pictures and lists of conversations."""
  edit = {
    "image": ["in/0.png", "out/0.png"],
    "conversations": [
      {"from": "human", "value": "<image>\nmake it blue"},
      {"from": "gpt", "value": "<image>"},
    ],
  }
  draw = {
    "image": ["1.png"],
    "conversations": [
      {"from": "human", "value": "a blue thing"},
      {"from": "gpt", "value": "<image>"},
    ],
  }
  put(home, "training_json/edit.json", [edit])
  put(home, "training_json/generate.json", [draw])
  put(home, "gpt-edit/hqedit/edit/in/0.png", picture(0))
  put(home, "gpt-edit/hqedit/edit/out/0.png", picture(1))
  put(home, "gpt-edit/hqedit/generate/1.png", picture(2))
  text = "gpt-edit/hqedit/edit,training_json/edit.json,false\n"
  text += "gpt-edit/hqedit/generate,training_json/generate.json,false\n"
  return put(home, "data.txt", text.encode()), {}, [("make it blue", 1), ("a blue thing", 0)]


def pico_banana(home):
  """Pico-Banana-400K after its own mapping of addresses to Open Images: three lists."""
  url = {"open_image_input_url": "https://farm0.example/0_o.jpg"}
  local = {"local_input_image": "openimages/train_0/0.jpg"}
  sft = {"text": "the long one", "summarized_text": "short", "edit_type": "x"}
  put(
    home, "sft.jsonl", lines([url | sft | local | {"output_image": "images/positive-edit/1.png"}])
  )
  worse = {"text": "prefer it", "rejected_images": ["images/negative-edit/1.png"]}
  good = {"output_image": "images/positive-edit/2.png"}
  put(home, "preference.jsonl", lines([url | worse | good | local]))
  files = [
    {"id": "edit_turn1", "url": "images/multi-turn/1_turn1.png"},
    {"id": "final_image", "url": "images/multi-turn/1_turn2.png"},
    {"id": "original_input_image", "url": url["open_image_input_url"]},
  ]
  turns = {"files": files, "metadata_edit_turn_prompts": ["warmer", "closer"]}
  put(home, "multi-turn.jsonl", lines([turns | local]))
  put(home, local["local_input_image"], jpeg(0))
  for i, name in enumerate(("positive-edit/1", "positive-edit/2", "negative-edit/1")):
    put(home, f"images/{name}.png", picture(i))
  for i in range(2):
    put(home, f"images/multi-turn/1_turn{i + 1}.png", picture(5 + i))
  return home, {}, [("warmer", 1), ("closer", 1), ("prefer it", 1), ("the long one", 1)]


def x2i2(home):
  """X2I2 of OmniGen2: inputs are absent where a text alone is drawn."""
  rows = [
    {"task_type": "t2i", "instruction": "a lake", "output_image": "t2i/0.png"},
    {
      "task_type": "edit",
      "instruction": "freeze it",
      "input_images": ["edit/0.png"],
      "output_image": "edit/1.png",
    },
    {
      "task_type": "in_context",
      "instruction": "put both there",
      "input_images": ["edit/0.png", "edit/1.png"],
      "output_image": "edit/2.png",
    },
  ]
  put(home, "jsons/edit.jsonl", lines(rows))
  for i, name in enumerate(("t2i/0", "edit/0", "edit/1", "edit/2")):
    put(home, f"{name}.png", picture(i))
  said = [("a lake", 0), ("freeze it", 1), ("put both there", 2)]
  return home / "jsons", {"images": str(home)}, said


def bagel_t2i(home):
  """BAGEL's text-to-image tables: bytes, and captions as an object in a text."""
  rows = [
    {"image": picture(i), "captions": json.dumps({"short": f"s{i}", "long": f"long {i}"})}
    for i in range(3)
  ]
  table(home / "t2i" / "chunk_0.parquet", rows)
  return home / "t2i", {"caption": "captions.long"}, [(f"long {i}", 0) for i in range(3)]


def bagel_edit(home):
  """BAGEL's editing tables: lists of pictures, and of instructions in other words."""
  import pyarrow

  rows = [
    {
      "image_list": [picture(4 * i + j) for j in range(3)],
      "instruction_list": [[f"first {i}", f"other {i}"], [f"then {i}"]],
    }
    for i in range(2)
  ]
  types = {"image_list": pyarrow.list_(pyarrow.binary())}
  table(home / "editing" / "seedxedit_multi" / "0.parquet", rows, **types)
  said = [(f"{what} {i}", 1) for i in range(2) for what in ("first", "then")]
  return home / "editing" / "seedxedit_multi", {}, said


ALL = {
  "BLIP3o-Pretrain-Long-Caption": blip3o_long,
  "BLIP3o-Pretrain-Short-Caption": blip3o_short,
  "BLIP3o-Pretrain-JourneyDB": journeydb,
  "BLIP3o-60k": blip3o_60k,
  "ShareGPT-4o-Image": sharegpt_4o_image,
  "text-to-image-2M": text_to_image_2m,
  "CC12M": cc12m,
  "ImgEdit": imgedit,
  "GPT-Image-Edit-1.5M": gpt_image_edit,
  "Pico-Banana-400K": pico_banana,
  "X2I2": x2i2,
  "BAGEL, text to image": bagel_t2i,
  "BAGEL, editing": bagel_edit,
}
