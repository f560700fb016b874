"""Who trains in a folder: one run at a time. The file `lock` says which.

The kernel's lock of the file (flock) ends with its process, so on one machine, and on shared
folders that pass it on, a killed run holds nothing. Not all do: so the file also has a beat that
the holder writes, and one from elsewhere is watched, by the watcher's own clock, before it is taken
over. A folder that is no path of this machine (gs://...) has no lock.
"""

import contextlib
import datetime
import fcntl
import json
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any

from absl import logging
from etils import epath
import jax

from blip3o_jax.train import agreement

NAME = "lock"
SIZE = 512  # bytes of the file: a beat overwrites them and needs no room on a full disk


class InUseError(OSError):
  """Another run trains in this folder."""


class Lock:
  """Held by a run from `take` to the end of the context; process 0 holds it for all.

  Args:
    workdir: of the run; where there is none yet, `take` is called again once there is.
    beat: seconds between signs of life. stale: seconds without one after which a holder elsewhere
      counts as dead.
  """

  def __init__(self, workdir: epath.PathLike, *, beat: float = 10.0, stale: float = 60.0):
    self._folder, self._beat, self._stale = os.fspath(workdir), beat, stale
    self._path = Path(self._folder) / NAME
    self._file, self._lost = -1, ""
    self._me: dict[str, Any] = {}
    self._end = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Lock":
    self.take()
    return self

  def __exit__(self, *_: object) -> None:
    self._end.set()
    if self._thread is not None:
      self._thread.join()
    if self._file >= 0:
      if not self._lost and _read(self._path).get("id") == self._me["id"]:
        self._path.unlink(missing_ok=True)
      os.close(self._file)
      self._file = -1

  def take(self) -> None:
    """Takes the lock, if it is not held yet and the folder exists; all processes must call this.

    Raises:
      InUseError: another run holds it. OSError: the folder cannot be written.
    """
    error: OSError | None = None
    if jax.process_index() == 0 and self._file < 0 and os.path.isdir(self._folder):
      try:
        self._take()
      except OSError as found:
        error = found
    if said := agreement.first(str(error) if error else ""):
      raise error or InUseError(said)

  def check(self) -> None:
    """Raises InUseError once another run has taken the lock over."""
    if self._lost:
      raise InUseError(f"{self._folder}: taken over by {self._lost}; this run stops")

  def _take(self) -> None:
    if "://" in self._folder:
      logging.warning("%s: no lock there; two runs in it are not kept apart", self._folder)
      return
    file, locked = self._open()
    try:
      holder = _read(self._path)
      if not locked or (holder and not _is_dead(holder)):
        self._watch(holder, locked)
      began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
      self._me = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
      self._me |= {"start": _start_of(os.getpid()), "began": began, "id": os.urandom(8).hex()}
      if holder:
        logging.warning(
          "%s: the lock of %s was left behind; taken over", self._folder, _who(holder)
        )
      _write(file, self._me | {"beat": 0})
    except BaseException:
      os.close(file)
      raise
    self._file = file
    self._thread = threading.Thread(target=self._beats, daemon=True, name="lock")
    self._thread.start()

  def _open(self) -> tuple[int, bool]:
    """The file, and whether the kernel gave its lock."""
    while True:
      file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if self._path.exists() and os.fstat(file).st_ino == self._path.stat().st_ino:
          return file, True
        os.close(file)  # its holder removed it in the meantime
      except BlockingIOError:
        os.close(file)
        raise self._in_use(_read(self._path)) from None
      except OSError:  # a file system that has no such lock
        return file, False

  def _watch(self, holder: dict[str, Any], locked: bool) -> None:
    """Returns when nothing moves in the file for long enough.

    Raises:
      InUseError: its holder lives, or another run took it.
    """
    if not holder and not locked and self._path.stat().st_size == 0:
      return
    if holder.get("machine") == _machine():
      raise self._in_use(holder)
    text = "%s: %s holds the lock, or was killed; watching it for %.0f s"
    logging.warning(text, self._folder, _who(holder), self._stale)
    until = time.monotonic() + self._stale
    while time.monotonic() < until:
      time.sleep(min(self._beat, self._stale) / 4)
      if (now := _read(self._path)) != holder:
        raise self._in_use(now or holder)

  def _in_use(self, holder: dict[str, Any]) -> InUseError:
    return InUseError(
      f"{self._folder}: in use by {_who(holder)}; wait for that run or end it, or give this one "
      "another --workdir"
    )

  def _beats(self) -> None:
    count = 0
    while not self._end.wait(self._beat):
      count += 1
      holder = _read(self._path)
      if holder.get("id", self._me["id"]) != self._me["id"]:
        self._lost = _who(holder)
        return
      with contextlib.suppress(OSError):  # a file system that stalls: the next beat tries again
        _write(self._file, self._me | {"beat": count})


def _write(file: int, content: dict[str, Any]) -> None:
  os.pwrite(file, json.dumps(content).ljust(SIZE - 1).encode() + b"\n", 0)
  os.fsync(file)


def _read(path: Path) -> dict[str, Any]:
  """What the file says; {} for one that is not there, empty or half written."""
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _who(holder: dict[str, Any]) -> str:
  began = f" (since {holder['began']})" if "began" in holder else ""
  return f"{holder.get('pid', 'an unknown process')} on {holder.get('host', 'this host')}{began}"


def _is_dead(holder: dict[str, Any]) -> bool:
  """Whether the process of a lock surely ended: one of this machine that is not there."""
  here = holder.get("machine") == _machine() != ""
  return here and _start_of(int(holder.get("pid", 0))) != holder.get("start")


def _machine() -> str:
  """This machine since its start, and the space in which its process ids count; "" if unknown."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


def _start_of(pid: int) -> str:
  """When a process began, in ticks since the machine did; "" where there is none."""
  try:
    text = Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return ""
  state, *rest = text.rpartition(")")[2].split()
  return "" if state in "ZX" else rest[18]
