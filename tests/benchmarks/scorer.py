"""Prints how well the scorer of the embedded set works, as markdown (docs/scorer.md keeps it).

python tests/benchmarks/scorer.py [pictures of each kind, default 1000]
"""

import sys
import time

import numpy as np

from blip3o_jax.data.shapes import render_many
from blip3o_jax.data.shapes import scene
from blip3o_jax.evaluate import shapes
from blip3o_jax.evaluate.shapes import check


def table(title: str, rows: dict[str, dict[str, int]]) -> None:
  """One confusion matrix, true names down, found names across."""
  names = list(next(iter(rows.values())))
  print(f"| {title} | " + " | ".join(names) + " |")
  print("|---" * (len(names) + 1) + "|")
  for true, row in rows.items():
    print(f"| {true} | " + " | ".join(str(row[n]) for n in names) + " |")
  print()


def main() -> None:
  """Measures and prints."""
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
  found = check.measure(count)
  print("# The scorer of the embedded set, measured\n")
  print(f"Made by `python tests/benchmarks/scorer.py {count}`: {count} pictures of each kind.\n")
  print(f"True renderings accepted: {found['accuracy']:.2%}. Wrong ones rejected:", end=" ")
  print(f"{found['rejection']:.2%}.\n")
  print("| true renderings accepted | as drawn | blur 0.6 px, noise 4 of 255 |\n|---|---|---|")
  for category, rate in found["accepted"].items():
    print(f"| {category} | {rate:.2%} | {found['softened'][category]:.2%} |")
  print("\n| one thing wrong | rejected |\n|---|---|")
  for wrong, rate in found["rejected"].items():
    print(f"| {wrong} | {rate:.2%} |")
  print("\n## Objects: true names down, found names across\n")
  table("shape", found["confusion"]["shape"])
  table("color", found["confusion"]["color"])
  print("## The same under blur 0.6 px and noise 4 of 255\n")
  table("shape", found["confusion_softened"]["shape"])
  table("color", found["confusion_softened"]["color"])
  print("## Whole pictures under stronger blur and noise: every object right and in place\n")
  print("| blur px | noise of 255 | PSNR dB | right |\n|---|---|---|---|")
  scenes = [scene(1, i, "test") for i in range(count)]
  images = render_many(scenes)
  rng = np.random.default_rng(0)
  for sigma, noise in ((0.6, 4), (0.8, 6), (1.0, 8), (1.3, 8)):
    soft = check.soften(images, sigma, noise, rng)
    psnr = -10 * np.log10(np.square((soft.astype(np.float64) - images) / 255).mean())
    print(f"| {sigma} | {noise} | {psnr:.1f} | {shapes.agree(soft, scenes).mean():.1%} |")
  start = time.process_time()
  shapes.detect_many(images)
  print(f"\n{1000 * (time.process_time() - start) / count:.1f} CPU seconds for 1000 pictures.")
  print("\n## Edits\n")
  edited = check.measure_edits(count)
  print("| targets accepted | as drawn | blur 0.6 px, noise 4 of 255 |\n|---|---|---|")
  for kind, rate in edited["accepted"].items():
    print(f"| {kind} | {rate:.2%} | {edited['softened'][kind]:.2%} |")
  print("\n| one thing wrong, all kinds | rejected |\n|---|---|")
  for wrong, rate in edited["rejected"].items():
    print(f"| {wrong} | {rate:.2%} |")


if __name__ == "__main__":
  main()
