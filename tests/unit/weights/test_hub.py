"""Directories and hub ids: what wins, what is fetched, and what is said without a connection."""

from pathlib import Path

import checkpoints
import huggingface_hub
import pytest

import blip3o_jax
from blip3o_jax.weights import hub

NAME = "BLIP3o/BLIP3o-Model-8B"


@pytest.fixture
def fetched(monkeypatch, tmp_path) -> list[tuple[str, list[str]]]:
  """What was asked of the hub, which answers with a folder of this test."""
  asked: list[tuple[str, list[str]]] = []

  def download(name: str, *, allow_patterns: list[str]) -> str:
    asked.append((name, allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "model.safetensors").write_bytes(b"")
  return asked


def test_a_directory_wins(fetched, tmp_path):
  (tmp_path / "owner" / "name").mkdir(parents=True)
  assert hub.local_directory("owner/name") == Path("owner/name")
  assert hub.local_directory(str(tmp_path)) == tmp_path
  assert not fetched


def test_an_id_is_fetched_without_pickles(fetched, tmp_path):
  assert hub.local_directory(NAME) == tmp_path
  assert hub.local_directory(f"hf://{NAME}", pickles=True) == tmp_path
  (first, few), (second, all_) = fetched
  assert first == second == NAME
  assert "*.safetensors" in few
  assert "*.bin" not in few
  assert "*.bin" in all_
  assert not [pattern for pattern in all_ if pattern in ("*", "*.py")]


@pytest.mark.parametrize(
  "source",
  ["/absent/model", "./owner/name", "../name", "~/name", "name", "a/b/c", "owner/", "-o/name", ""],
)
def test_what_is_no_id_is_not_fetched(fetched, source):
  with pytest.raises(FileNotFoundError, match=r"expected a|Expected a local directory"):
    hub.local_directory(source)
  assert not fetched


def test_a_path_that_looks_like_an_id(fetched, tmp_path):
  """With a folder of the owner's name here it is a mistyped path; hf:// asks all the same."""
  (tmp_path / "runs").mkdir()
  with pytest.raises(FileNotFoundError, match=r"runs/modl: no such directory.*hf://owner/name"):
    hub.local_directory("runs/modl")
  assert not fetched
  hub.local_directory("hf://runs/modl")
  assert fetched[0][0] == "runs/modl"


def test_a_file_and_a_damaged_scheme(fetched, tmp_path):
  (tmp_path / "weights").write_text("")
  with pytest.raises(FileNotFoundError, match="weights: a file; expected a directory"):
    hub.local_directory("weights")
  with pytest.raises(FileNotFoundError, match="not a hub id"):
    hub.local_directory("hf://owner")
  assert not fetched


@pytest.mark.parametrize("offline", [False, True], ids=["no connection", "HF_HUB_OFFLINE"])
def test_without_a_connection(monkeypatch, refused, tmp_path, offline):
  """Every socket is refused in tests; the error names the id, what was tried and what to do."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
  with pytest.raises(FileNotFoundError) as caught:
    hub.local_directory("nobody-here/absent-model")
  message = str(caught.value)
  assert message.startswith("nobody-here/absent-model: no such local directory, so it was taken")
  assert "not in the local cache and could not be fetched" in message
  assert "HF_HUB_OFFLINE" in message
  assert "hf download nobody-here/absent-model --local-dir DIR" in message
  assert "\n" not in message
  assert bool(refused) != offline
  refused.clear()


def test_a_repository_that_is_not_given_out(monkeypatch, tmp_path):
  class NotFound(huggingface_hub.errors.RepositoryNotFoundError):
    def __init__(self, message: str):  # the original's wants an answer of its HTTP library
      Exception.__init__(self, message)

  def download(name: str, **_: object) -> str:
    raise NotFound(f"401 for {name}\nlonger")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"absent, private or gated \(NotFound: 401.*hf auth"):
    hub.local_directory(NAME)


# A cache that holds a part ------------------------------------------------------------------------


def link_away(home: Path) -> None:
  """As when the file that a snapshot points to was cleared away."""
  (home / "model-00002-of-00002.safetensors").unlink()
  (home / "model-00002-of-00002.safetensors").symlink_to(home / "gone")


LACKS = {
  "a shard": (
    lambda s: (s / "model-00002-of-00002.safetensors").unlink(),
    "model-00002-of-00002.s",
  ),
  "what a link stands for": (link_away, "model-00002-of-00002.safetensors"),
  "the tokenizer": (lambda s: (s / "tokenizer.json").unlink(), "tokenizer.json"),
  "all weights": (lambda s: [p.unlink() for p in s.glob("model*")], r"\*\.safetensors"),
  "the UNet's weights": (
    lambda s: next((s / "diffusion-decoder" / "unet").glob("*.safetensors")).unlink(),
    r"diffusion-decoder/unet/\*\.safetensors",
  ),
  "a shard, and its index": (
    lambda s: [(s / n).unlink() for n in ("model.safetensors.index.json", SHARD)],
    "model-00001-of-00002.safetensors",
  ),
}
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def cached(monkeypatch, tmp_path) -> Path:
  """The snapshot of a repository in a cache of huggingface_hub, offline."""
  home = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
  snapshot = home / "snapshots" / ("0" * 40)
  checkpoints.copy(snapshot)
  (home / "refs").mkdir()
  (home / "refs" / "main").write_text("0" * 40)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.chdir(tmp_path)
  return snapshot


def test_a_snapshot_that_is_whole(cached):
  assert hub.local_directory(NAME) == cached


@pytest.mark.parametrize("kind", LACKS)
def test_a_snapshot_that_is_not_whole(cached, kind):
  damage, lacks = LACKS[kind]
  damage(cached)
  with pytest.raises(
    FileNotFoundError, match=rf"is incomplete, it lacks {lacks}.*fetch it again"
  ) as e:
    blip3o_jax.load(NAME)
  assert "\n" not in str(e.value)
