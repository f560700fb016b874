"""Makes the index of a folder of WebDataset tars, so that training starts at once.

python tools/index_tars.py /data/pretrain [--partial]
"""

import argparse

from blip3o_jax.data.sources import tars


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder")
  parser.add_argument("--partial", action="store_true", help="use what is whole of truncated tars")
  args = parser.parse_args()
  index = tars.index_folder(args.folder, partial=args.partial)
  images, _, features = (index["offset"] >= 0).sum(0)
  print(
    f"{len(index['tar'])} records in {len(index['tars'])} tars: {images} with an image, "
    f"{features} with cached features"
  )


if __name__ == "__main__":
  main()
