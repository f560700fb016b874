"""A caption set of any layout as a TFDS set: ArrayRecord files that others read with TFDS alone.

`blip3o pack PATH --output DIR --format tfds --name my_captions` prepares DIR/my_captions/1.0.0. To
publish under a name that TFDS knows, or to prepare on many machines, give the builder a file of its
own, my_captions/my_captions_dataset_builder.py:

  from blip3o_jax.data import publish
  from blip3o_jax.data.sources.reading import Reading

  Builder = publish.captions(
    "my_captions", publish.Set("/data/tars", Reading(), licence="CC BY 4.0"), __name__
  )

With TensorFlow installed (its command line needs it), `tfds build --file_format=array_record` in
that folder prepares it; without, `prepare` does. (TFDS 4.9.10 imports importlib_resources for a
builder in a package, and does not install it.) For sets that outgrow one machine `beam=True`
makes generation a Beam pipeline, which any of Beam's runners takes by its usual options (`--beam`
of `blip3o pack`, `beam_options` of `prepare`, `--beam_pipeline_options` of tfds): several processes
of one machine with runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=16,
a cluster with runner=FlinkRunner,flink_master=HOST:PORT or runner=SparkRunner, Google's with
runner=DataflowRunner,project=...,region=...,temp_location=gs://... Its workers need this package
and the set's files, of which each reads ranges of RANGE records.

Pictures are stored as they were, byte for byte: palettes, transparency and WebP too, which TFDS's
own decoding treats in different ways. Give PNG or JPEG in RGB where others are to decode with it.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import io
import re
import types
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax.data import sources
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources.reading import Reading

RANGE = 1024
VERSION = "1.0.0"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclasses.dataclass(frozen=True)
class Set:
  """What is published.

  Attributes:
    path: of the set. reading: of its files. licence, description, homepage, citation: what
      DatasetInfo says. split: of TFDS, which all records are put into. beam: generate with Beam.
  """

  path: str
  reading: Reading = Reading()
  licence: str = ""
  description: str = ""
  homepage: str = ""
  citation: str = ""
  split: str = "train"
  beam: bool = False


def captions(name: str, what: Set, module: str = "", version: str = VERSION) -> Any:
  """The class of a TFDS builder; its features are image, caption and id.

  Args:
    name: of the set, in lower case, words joined by "_".
    module: that the class belongs to, `__name__` of a file that `tfds build` is to find it in; ""
      is none, where TFDS looks for nothing beside it.

  Raises:
    ValueError: another name, or no tensorflow-datasets.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ValueError("writing TFDS needs it: pip install blip3o-jax[tfds]") from None
  if not _NAME.fullmatch(name):
    raise ValueError(f"name {name!r}: expected lower case, words joined by _, as my_captions")

  def info(builder: Any) -> Any:
    texts = tfds.features.Text()
    features = {"image": tfds.features.Image(), "caption": texts, "id": texts}
    return tfds.core.DatasetInfo(
      builder=builder,
      description=what.description or f"Pictures with captions, {name}.",
      features=tfds.features.FeaturesDict(features),
      homepage=what.homepage or None,
      citation=what.citation or None,
      license=what.licence or None,
    )

  def generate(builder: Any) -> Any:
    count = len(sources.opened(what.path, what.reading))
    if not what.beam:
      return examples(what.path, what.reading, 0, count)
    beam = tfds.core.lazy_imports.apache_beam
    read = functools.partial(_range, what.path, what.reading, count)
    return beam.Create(range(0, count, RANGE)) | beam.Reshuffle() | beam.FlatMap(read)

  body = {
    "__module__": module or name,
    "__doc__": f"Builds {name}.",
    "name": name,
    "VERSION": tfds.core.Version(version),
    "_info": info,
    "_split_generators": lambda builder, manager: {what.split: builder._generate_examples()},
    "_generate_examples": generate,
  }
  title = "".join(word.capitalize() for word in name.split("_"))
  bases, options = (tfds.core.GeneratorBasedBuilder,), {"skip_registration": True}
  return types.new_class(title, bases, options, lambda names: names.update(body))


def prepare(
  name: str, what: Set, output: str, *, version: str = VERSION, beam_options: Sequence[str] = ()
) -> str:
  """Prepares a set; returns the folder that `TfdsSource` reads.

  Args:
    beam_options: with `what.beam`, of the pipeline, NAME=VALUE each.

  Raises:
    FileExistsError: it was prepared before. ValueError: see `captions` and `examples`.
  """
  builder = captions(name, what, version=version)(data_dir=output, file_format="array_record")
  folder = str(builder.data_path)
  if builder.data_path.exists():
    raise FileExistsError(f"{folder}: exists already; nothing was written")
  builder.download_and_prepare(
    file_format="array_record", download_config=_config(beam_options) if what.beam else None
  )
  return folder


def _config(options: Sequence[str]) -> Any:
  """TFDS's config with options for Beam."""
  import tensorflow_datasets as tfds

  try:
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError:
    raise ValueError("generating with Beam needs it: pip install apache-beam") from None
  beam_options = PipelineOptions([f"--{option}" for option in options])
  return tfds.download.DownloadConfig(beam_options=beam_options)


def examples(path: str, reading: Reading, first: int, end: int) -> Iterator[tuple[int, Any]]:
  """The records [first, end) as TFDS takes them: a number, and {image, caption, id}.

  Damaged records are left out with a warning.

  Raises:
    ValueError: records without picture, or with more than a caption.
  """
  source = sources.opened(path, reading)
  for index in range(first, end):
    try:
      record = source[index]
    except BadRecord as error:
      logging.warning("left out: %s", error)
      continue
    if record.image is None or record.answer or record.turns or record.inputs:
      raise ValueError(
        f"{record.name}: expected a picture and its caption; pack questions, edits and features "
        "with --format arrayrecord"
      )
    yield index, {"image": _encoded(record), "caption": record.prompt, "id": record.name}


def _range(path: str, reading: Reading, count: int, first: int) -> Iterator[tuple[int, Any]]:
  """The records of one range, for a Beam worker."""
  return examples(path, reading, first, min(first + RANGE, count))


def _encoded(record: Record) -> io.BytesIO:
  """A picture's bytes as they are; of an array a PNG."""
  if not isinstance(record.image, np.ndarray):
    return io.BytesIO(record.image or b"")
  from PIL import Image

  out = io.BytesIO()
  Image.fromarray(record.image).save(out, "PNG")
  out.seek(0)
  return out
