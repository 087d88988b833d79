"""Models on this disk: used without network, described, removed, and shared by processes that fetch at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.cache import locked, own_entry
from edgepp.model.catalogue.source import HubRepository, resolve
from edgepp.model.fetch import describe, fetch, find_local, is_cached
from edgepp.model.hub.http_client import HubUnreachable
from edgepp.model.hub.snapshot import repository_folder
from edgepp.model.random_checkpoint import make_checkpoint
from edgepp.model.remove import remove
from edgepp.model.weights.model_parts import ModelParts
from tests.hub import COMMIT, FakeHub
from tests.loopback.model_hub.fetched import NAME, REQUEST_SLACK, SHAPE, layers_in, same
from tests.waiting import PATIENCE_S, eventually


class TestWithoutNetwork:
    @pytest.fixture(autouse=True)
    def some_layers(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        fetch(NAME, ModelParts(LayerRange(0, 4)))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    def test_a_model_on_disk_is_used(self, single: Path) -> None:
        same(fetch(NAME, ModelParts(LayerRange(0, 4))), single)
        same(fetch(NAME, ModelParts(LayerRange(0, 4)), newest=True), single)
        assert find_local(NAME, ModelParts(LayerRange(1, 2))) == fetch(NAME, ModelParts(LayerRange(1, 2)))

    def test_missing_parts_are_named(self) -> None:
        with pytest.raises(ModelError, match=r"only in part on this disk, without layers 4-5, and .* cannot be"):
            fetch(NAME, ModelParts(LayerRange(3, 6)))
        with pytest.raises(ModelError, match=r"without tokenizer\.json, tokenizer_config\.json"):
            fetch(NAME, ModelParts(embedding_and_head=True))

    def test_offline_by_choice(self, monkeypatch: pytest.MonkeyPatch, single: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        same(fetch(NAME, ModelParts(LayerRange(0, 4))), single)
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids") as caught:
            fetch(NAME)
        assert caught.value.hint == "unset HF_HUB_OFFLINE"

    def test_description(self) -> None:
        with pytest.raises(HubUnreachable):
            describe(NAME)


def test_the_hub_describes_a_model_without_a_card(hub: FakeHub) -> None:
    facts = describe(NAME)
    size = (hub.repositories[NAME] / "model.safetensors").stat().st_size
    assert (facts["cached"], facts["commit"], facts["bytes_total"]) == (False, hub.commit, size)


def test_a_model_is_removed_only_from_the_cache(hub: FakeHub, tmp_path: Path, single: Path) -> None:
    """Partial downloads are removed too; a folder of the user is not."""
    folder = fetch(NAME, ModelParts(LayerRange(0, 1)))
    assert remove(NAME) > 0
    assert not folder.exists()
    assert not list(cached_root().parent.glob(".*"))
    with pytest.raises(ModelError, match="not in edgepp's cache"):
        remove(NAME)
    with pytest.raises(ModelError, match="a folder of yours"):
        remove(str(single))
    same(fetch(NAME), single)


def test_a_model_that_is_being_fetched_is_not_removed(hub: FakeHub) -> None:
    folder = fetch(NAME, ModelParts(LayerRange(0, 1)))
    with locked(cached_root() / "lock"), pytest.raises(ModelError, match="another edgepp process is fetching"):
        remove(NAME)
    assert folder.is_dir()


def cached_root() -> Path:
    source = resolve(NAME)
    assert isinstance(source, HubRepository)
    return repository_folder(source)


def test_one_commit_makes_one_model(hub: FakeHub, tmp_path: Path, single: Path) -> None:
    """A branch that moves between two fetches is followed only with ``newest``."""
    first = fetch(NAME, ModelParts(LayerRange(0, 1)))
    hub.commit = "f" * 40
    hub.repositories[NAME] = newer = make_checkpoint(tmp_path / "newer", SHAPE, seed=9)
    with pytest.raises(ModelError, match="no such revision"):
        fetch(NAME, ModelParts(LayerRange(0, 2)))  # this fake forgets old commits; the real hub keeps them
    same(first, single)
    second = fetch(NAME, ModelParts(LayerRange(0, 2)), newest=True)
    assert second != first
    same(second, newer)
    assert find_local(NAME, ModelParts(LayerRange(0, 2))) == second


def test_models_that_other_programs_fetched_are_used(hub: FakeHub, tmp_path: Path, single: Path) -> None:
    shared = tmp_path / "shared" / "models--org--model"
    (shared / "refs").mkdir(parents=True)
    (shared / "refs" / "main").write_text(COMMIT)
    snapshot = shared / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for path in single.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert fetch(NAME) == snapshot
    assert fetch(f"{NAME}@{COMMIT}", ModelParts(LayerRange(0, 3))) == snapshot
    (snapshot / "model.safetensors").unlink()
    assert fetch(NAME) != snapshot


@pytest.fixture
def one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system like a Mac's, as far as ``other_case`` says which names are the same: links are not listed."""
    monkeypatch.setattr(
        "edgepp.model.cache._spellings", lambda folder: [one.name for one in folder.iterdir() if not one.is_symlink()]
    )


def other_case(path: Path, name: str) -> None:
    """Let ``path`` be found under another spelling of its name."""
    (path.parent / name).symlink_to(path.name)


@pytest.mark.usefixtures("one_case")
def test_two_repositories_that_differ_in_upper_case_stay_apart_where_a_file_system_takes_both_for_one(
    hub: FakeHub, tmp_path: Path, single: Path
) -> None:
    hub.repositories["Org/Model"] = other = make_checkpoint(tmp_path / "other", SHAPE, seed=9)
    same(fetch(NAME), single)
    other_case(cached_root(), "Org--Model")
    assert find_local("Org/Model") is None
    second = fetch("Org/Model")
    same(second, other)
    same(fetch(NAME), single)
    assert remove(NAME) > 0
    cached_root().with_name("Org--Model").unlink()
    assert fetch("Org/Model") == second, "it stays where it is when the other one is removed"
    assert find_local(NAME) is None


@pytest.mark.usefixtures("one_case")
def test_models_of_other_programs_and_branches_are_found_by_their_own_spelling_only(
    hub: FakeHub, tmp_path: Path, single: Path
) -> None:
    shared = tmp_path / "shared" / "models--org--model"
    (shared / "refs").mkdir(parents=True)
    (shared / "refs" / "main").write_text(COMMIT)
    other_case(shared / "refs" / "main", "Main")
    other_case(shared, "models--Org--Model")
    (shared / "snapshots").mkdir()
    (shared / "snapshots" / COMMIT).symlink_to(single)
    assert find_local(NAME) == shared / "snapshots" / COMMIT
    assert find_local("org/model@Main") is None
    assert find_local("Org/Model") is None


def test_names_have_entries_of_their_own_whatever_the_file_system(tmp_path: Path, one_case: None) -> None:
    (tmp_path / "q4").write_text("one")
    other_case(tmp_path / "q4", "Q4")
    assert own_entry(tmp_path, "q4") == tmp_path / "q4"
    apart = own_entry(tmp_path, "Q4")
    assert apart.name.startswith("Q4~")
    assert not apart.exists()
    assert own_entry(tmp_path, "Q8") == tmp_path / "Q8"


def test_files_that_a_mac_takes_for_one_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME] = folder = make_checkpoint(tmp_path / "twice", SHAPE)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "Tokenizer.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"has both Tokenizer\.json and tokenizer\.json, which a Mac takes for one file"
    ):
        fetch(NAME)
    assert hub.weights_sent() == 0


def test_a_local_folder_is_used_in_place(single: Path, tmp_path: Path) -> None:
    assert fetch(str(single)) == single
    assert is_cached(str(single))
    facts = describe(str(single))
    assert (facts["layers"], facts["cached"], facts["path"]) == (8, True, str(single))
    assert facts["bytes_total"] == 8 * SHAPE.layer_bytes() + SHAPE.embedding_bytes() + SHAPE.head_bytes()
    with pytest.raises(ModelError, match=r"no config\.json"):
        fetch(str(tmp_path))
    part = make_checkpoint(tmp_path / "part", SHAPE, files=4)
    (part / "model-00003-of-00004.safetensors").unlink()
    assert fetch(str(part), ModelParts(LayerRange(0, 4))) == part
    with pytest.raises(ModelError, match="lacks layers 4-5"):
        fetch(str(part), ModelParts(LayerRange(2, 6)))


@pytest.mark.parametrize(
    ("name", "said"),
    [("two\nlines", "no text in UTF-8"), ("latin-\udce9", "no text in UTF-8"), ("/".join(["x" * 200] * 3), "too long")],
)
def test_a_folder_whose_name_no_message_carries_is_refused_by_name(
    tmp_path: Path, single: Path, name: str, said: str
) -> None:
    """A stage process could not say which model it has: chat was told that no node answers."""
    folder = tmp_path / name
    shutil.copytree(single, folder)
    with pytest.raises(ModelError, match=f"the name of the folder .* {said}"):
        fetch(str(folder))


def test_a_card_is_described_without_a_download() -> None:
    facts = describe("llama-3.3-70b-4bit")
    assert (facts["cached"], facts["layers"], facts["bytes_total"]) == (False, 80, 39_688_355_840)
    json.dumps(facts)


def test_processes_that_fetch_at_once_do_not_harm_each_other(hub: FakeHub, single: Path) -> None:
    script = (
        "import sys; from edgepp.layer_range import LayerRange; from edgepp.model.fetch import ModelParts, fetch; "
        "print(fetch('org/model', ModelParts(LayerRange.parse(sys.argv[1]))))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    children = [
        subprocess.Popen([sys.executable, "-c", script, layers], env=environment, stdout=subprocess.PIPE, text=True)
        for layers in ("0-3", "2-5", "4-7")
    ]
    folders = {child.communicate(timeout=PATIENCE_S)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    (folder,) = folders
    assert layers_in(Path(folder)) == set(range(8))
    same(Path(folder), single)
    assert hub.weights_sent() <= 8 * SHAPE.layer_bytes() + REQUEST_SLACK


def test_a_process_killed_while_it_fetches_leaves_no_wrong_data(hub: FakeHub, single: Path) -> None:
    script = (
        "from edgepp.model.hub import download; from edgepp.model.fetch import fetch; "
        "download._PIECE_BYTES, download._SAVE_BYTES, download._CONNECTIONS = 1 << 20, 1, 2; fetch('org/model')"
    )
    hub.hold, hub.cut_after, hub.cuts = threading.Event(), 5_000_000, 2
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "HF_HUB_OFFLINE": "0"})
    eventually("the hub has cut twice", lambda: not hub.cuts)
    child.kill()
    child.wait()
    hub.hold.set()
    came = hub.weights_sent()
    hub.hold, hub.cut_after = None, None
    hub.sent.clear()
    folder = fetch(NAME, ModelParts(embedding_and_head=True))
    same(folder, single)
    fetch(NAME)
    same(folder, single)
    assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
    assert came + hub.weights_sent() <= (single / "model.safetensors").stat().st_size + (3 << 20)
