"""A plan as a table, and several side by side."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

GIB = 2**30
Facts = Mapping[str, Any]


def best(plans: Sequence[Facts]) -> tuple[int, str]:
  """(index of the best plan, by what): the least cost where all have one, else the fastest.

  Of one topology the fastest is the shortest step a sample; of several, samples a chip.
  """
  if all(plan.get("run_cost") for plan in plans):
    return min(range(len(plans)), key=lambda i: plans[i]["run_cost"]), "least cost"
  rates = [plan["samples_per_second_per_chip"] or 0.0 for plan in plans]
  return max(range(len(plans)), key=rates.__getitem__), "most samples a second and chip"


def lines(facts: Facts) -> list[str]:
  """One plan."""
  slices = f"{facts['slices']} slices of " if facts["slices"] > 1 else ""
  pairs = "" if facts["devices"] == facts["chips"] else f" ({facts['devices']} devices)"
  per = facts["batch_per_chip"]
  out = [
    "",
    f"{slices}{facts['topology']}: {facts['chips']} chips{pairs}, mesh {mesh(facts)}",
    f"batch {facts['batch']} ({per:g} a chip), prompts of {facts['prompt_bucket']} tokens",
  ]
  if facts["layers"]:
    out.append(f"A QUICK LOOK: networks of at most {facts['layers']} layers, not those of the run")
  if facts["compile_seconds"] is None:
    out.append("nothing was compiled: counts alone, and times are bounds")
  elif facts["compiled_before"]:
    out.append(f"compiled before, {facts['compiled_before']}, in {facts['compile_seconds']} s")
  else:
    out.append(f"compiled in {facts['compile_seconds']} s")
  out += [*_memory(facts), *_operations(facts), *_wires(facts), *_time(facts)]
  return out


def mesh(facts: Facts) -> str:
  """The mesh as `--mesh` takes it."""
  return ",".join(f"{axis}={n}" for axis, n in facts["mesh"].items())


def _memory(facts: Facts) -> list[str]:
  sizes = {k: v for k, v in facts["bytes_per_chip"].items() if v is not None}
  host = sizes.pop("host", 0)
  sizes |= {"in the host's memory: moments": host} if host else {}
  sizes |= {"of arguments held whole by every chip": facts["replicated_bytes"]}
  lines = [f"  {name:<40} {size / GIB:9.2f} GiB" for name, size in sizes.items()]
  frozen = facts["frozen"]
  if frozen["bytes"] and facts["devices"] > 1:
    room = f" of {frozen['capacity'] / GIB:.2f}" if frozen["capacity"] else ""
    size = f"{frozen['bytes'] / GIB:.2f}{room} GiB of a device"
    takes = "and take" if frozen["whole"] else "and would take, if whole,"
    lines.append(f"  frozen leaves are {frozen['placement']} {takes} {size}")
  return ["memory a chip", *lines]


def _operations(facts: Facts) -> list[str]:
  out = ["operations"]
  if facts["flops_per_step"] is not None:
    out.append(f"  {'a step, all chips':<40} {facts['flops_per_step'] / 1e12:9.1f} TFLOP")
    out.append(f"  {'a sample, compiled':<40} {facts['flops_per_sample'] / 1e12:9.3f} TFLOP")
  by_formula = facts["flops_per_sample_analytic"] / 1e12
  return [*out, f"  {'a sample by formula, nothing recomputed':<40} {by_formula:9.3f} TFLOP"]


def _wires(facts: Facts) -> list[str]:
  if not facts["collective_bytes"]:
    return []
  counts = facts["collective_counts"]
  return [
    "results of collectives on a device, a step",
    *(
      f"  {name:<40} {size / 2**20:9.1f} MiB in {counts[name]}"
      for name, size in facts["collective_bytes"].items()
    ),
  ]


def _time(facts: Facts) -> list[str]:
  terms = {k: v for k, v in facts["step_seconds_by_term"].items() if v is not None}
  out = ["roofline, each term alone at its peak"] if terms else []
  for name, seconds in terms.items():
    mark = "  <- the longest" if name == facts["limited_by"] else ""
    out.append(f"  {name:<40} {seconds * 1e3:9.1f} ms{mark}")
  if facts["step_seconds"] is None:
    return [*out, f"time: {facts['step_seconds_basis']}"]
  bound = "" if facts.get("step_seconds_by_cycles") else "at least "
  took = f"{bound}{facts['step_seconds'] * 1e3:.1f} ms"
  out.append(f"a step takes {took} ({facts['step_seconds_basis']})")
  if parts := facts.get("step_seconds_by_cycles"):
    out.append(
      f"  of them {parts['compute'] * 1e3:.1f} ms cycles, {parts['exposed'] * 1e3:.1f} ms waiting"
    )
  rate, most = facts["samples_per_second_per_chip"], "at most " if bound else ""
  out.append(f"  {most}{rate:.2f} samples a second and chip, MFU {most}{facts['mfu']:.3f}")
  cost = f", {facts['run_cost']:,.0f} at {facts['price']:g} a chip-hour" if "price" in facts else ""
  out.append(
    f"the run, {facts['run_samples']:,} samples: {bound}{facts['run_days']:.2f} days, "
    f"{facts['run_chip_hours']:,.0f} chip-hours{cost}"
  )
  return out


def side_by_side(plans: Sequence[Facts], refused: Sequence[str]) -> list[str]:
  """A row a plan, the best marked, then what was refused and why."""
  head = ("topology", "mesh", "a chip", "GiB", "ms", "samples/s/chip", "MFU", "days", "chip-hours")
  rows: list[tuple[str, ...]] = [(*head, "cost")]
  for plan in plans:
    total, step = plan["bytes_per_chip"]["total"], plan["step_seconds"]
    rows.append(
      (
        plan["topology"] + (f" x{plan['slices']}" if plan["slices"] > 1 else ""),
        mesh(plan),
        f"{plan['batch_per_chip']:g}",
        f"{total / GIB:.1f}" if total is not None else "",
        *(f"{x:.{digits}f}" if x is not None else "" for x, digits in _numbers(plan, step)),
        f"{plan['run_cost']:,.0f}" if plan.get("run_cost") else "",
      )
    )
  if all(not row[-1] for row in rows[1:]):
    rows = [row[:-1] for row in rows]
  index, why = best(plans)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  out = [""]
  for i, row in enumerate(rows):
    text = "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
    out.append(f"{text}  <- best: {why}" if i == index + 1 else text)
  return out + [f"refused: {line}" for line in refused]


def _numbers(plan: Facts, step: float | None) -> list[tuple[float | None, int]]:
  return [
    (step * 1e3 if step else None, 1),
    (plan["samples_per_second_per_chip"], 2),
    (plan["mfu"], 3),
    (plan["run_days"], 2),
    (plan["run_chip_hours"], 0),
  ]
