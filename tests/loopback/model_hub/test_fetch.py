"""Fetching over loopback HTTP: only needed bytes are sent, and no failure leaves wrong data on the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.fetch import fetch, find_local, is_cached
from edgepp.model.hub import client as hub_client
from edgepp.model.hub import download
from edgepp.model.random_checkpoint import make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint, layer_of
from edgepp.model.weights.model_parts import ModelParts
from tests.hub import FakeHub, serving
from tests.loopback.model_hub.fetched import NAME, REQUEST_SLACK, SHAPE, layers_in, same


class TestOnlyNeededBytes:
    def test_a_node_fetches_its_layers(self, hub: FakeHub, single: Path) -> None:
        folder = fetch(NAME, ModelParts(LayerRange(3, 5)))
        assert layers_in(folder) == {3, 4}
        same(folder, single)
        assert 2 * SHAPE.layer_bytes() <= hub.weights_sent() <= 2 * SHAPE.layer_bytes() + REQUEST_SLACK
        assert hub.sent["tokenizer.json"] == 0
        assert folder.name == "model"

    def test_a_coordinator_fetches_embedding_head_and_tokenizer(self, hub: FakeHub, single: Path) -> None:
        folder = fetch(NAME, ModelParts(embedding_and_head=True))
        assert {name for name in Checkpoint.open(folder).tensors if layer_of(name) is not None} == set()
        assert "model.embed_tokens.weight" in Checkpoint.open(folder).tensors
        same(folder, single)
        wanted = SHAPE.embedding_bytes() + SHAPE.head_bytes()
        assert wanted <= hub.weights_sent() <= wanted + REQUEST_SLACK
        assert (folder / "tokenizer.json").read_bytes() == (single / "tokenizer.json").read_bytes()

    @pytest.mark.parametrize("files", [1, 4])
    def test_a_rank_of_the_last_stage_fetches_norm_and_head_and_no_embedding(
        self, hub: FakeHub, tmp_path: Path, files: int
    ) -> None:
        untied = make_checkpoint(tmp_path / "untied", replace(SHAPE, tied=False), files=files)
        hub.repositories[NAME] = untied
        layers = ModelParts(LayerRange(6, 8))
        module = Checkpoint.open(fetch(NAME, layers)).head_module
        folder = fetch(NAME, replace(layers, head=module))
        outside = {name for name in Checkpoint.open(folder).tensors if layer_of(name) is None}
        assert outside == {"model.norm.weight", "lm_head.weight", "lm_head.scales", "lm_head.biases"}
        assert Checkpoint.open(folder).has_head
        same(folder, untied)
        assert not (folder / "tokenizer.json").exists()

    def test_files_without_wanted_tensors_are_not_requested(self, hub: FakeHub, indexed: Path) -> None:
        hub.repositories[NAME] = indexed
        folder = fetch(NAME, ModelParts(LayerRange(2, 4)))
        assert {path.name for path in folder.glob("*.safetensors")} == {"model-00002-of-00004.safetensors"}
        assert layers_in(folder) == {2, 3}
        same(folder, indexed)

    def test_everything(self, hub: FakeHub, indexed: Path) -> None:
        hub.repositories[NAME] = indexed
        folder = fetch(NAME)
        for path in indexed.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes()
        assert not list(folder.glob("*.partial.json"))

    def test_more_parts_are_added_to_a_partial_model(self, hub: FakeHub, single: Path) -> None:
        fetch(NAME, ModelParts(LayerRange(0, 2)))
        hub.sent.clear()
        folder = fetch(NAME, ModelParts(LayerRange(1, 3)))
        assert layers_in(folder) == {0, 1, 2}
        assert hub.weights_sent() <= SHAPE.layer_bytes() + 1000, "layer 1 is not fetched again"
        fetch(NAME)
        assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
        same(folder, single)

    def test_parts_on_disk_are_not_requested_again(self, hub: FakeHub) -> None:
        fetch(NAME, ModelParts(LayerRange(0, 2)))
        hub.requests.clear()
        fetch(NAME, ModelParts(LayerRange(0, 2)))
        fetch(NAME, ModelParts(LayerRange(1, 2)))
        assert hub.requests == []

    def test_progress_ends_at_its_total(self, hub: FakeHub) -> None:
        seen: list[tuple[int, int, str]] = []
        fetch(NAME, ModelParts(LayerRange(0, 3)), lambda done, total, what: seen.append((done, total, what)))
        assert seen[-1][0] == seen[-1][1] > SHAPE.layer_bytes()
        assert seen[-1][2] == "model.safetensors"
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)

    def test_python_files_and_pickles_stay_where_they_are(self, hub: FakeHub, tmp_path: Path, single: Path) -> None:
        crowded = make_checkpoint(tmp_path / "crowded", SHAPE)
        for name in ("modeling.py", "pytorch_model.bin", "adapters.safetensors", "consolidated.safetensors"):
            (crowded / name).write_bytes(b"x")
        hub.repositories[NAME] = crowded
        folder = fetch(NAME)
        assert {path.name for path in folder.iterdir()} == {path.name for path in single.iterdir()}


class TestFaults:
    @pytest.mark.parametrize("sizes", [True, False])
    def test_a_hub_without_ranges_sends_whole_files(self, hub: FakeHub, single: Path, sizes: bool) -> None:
        hub.ranges, hub.sizes = False, sizes
        folder = fetch(NAME, ModelParts(LayerRange(3, 5)))
        same(folder, single)
        assert is_cached(NAME, ModelParts(LayerRange(0, 8)))
        assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()

    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_broken_transfer_is_resumed(self, hub: FakeHub, single: Path, ranges: bool) -> None:
        hub.ranges, hub.cut_after = ranges, 700_000
        folder = fetch(NAME)
        assert hub.cuts == 0
        same(folder, single)
        assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()

    def test_a_failed_fetch_is_resumed(self, hub: FakeHub, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub_client, "_MAX_ATTEMPTS", 1)
        monkeypatch.setattr(download, "_CONNECTIONS", 1)
        hub.cut_after, hub.cuts = 3_000_000, 2
        with pytest.raises(ModelError, match="cannot be reached"):
            fetch(NAME)
        assert not is_cached(NAME)
        came = hub.weights_sent()
        hub.cut_after = None
        hub.sent.clear()
        folder = fetch(NAME)
        size = (single / "model.safetensors").stat().st_size
        assert came > 2_500_000
        assert hub.weights_sent() <= size - came + 300_000, "what had come is not fetched again"
        same(folder, single)
        assert layers_in(folder) == {None, *range(8)}

    def test_no_incomplete_tensor_is_listed_after_a_failure(
        self, hub: FakeHub, single: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub_client, "_MAX_ATTEMPTS", 1)
        for cut_after in (100_000, 500_000, 1_500_000, 4_000_000):
            hub.sent.clear()
            hub.cut_after, hub.cuts = cut_after, 9
            with pytest.raises(ModelError):
                fetch(NAME)
            folder = find_local(NAME, ModelParts())
            if folder is not None:
                same(folder, single)

    def test_a_busy_hub_is_asked_again(self, hub: FakeHub, single: Path) -> None:
        hub.busy = 3
        same(fetch(NAME, ModelParts(LayerRange(0, 1))), single)
        hub.busy = 99
        with pytest.raises(ModelError, match="answered 503"):
            fetch(NAME)

    def test_a_missing_repository(self, hub: FakeHub) -> None:
        with pytest.raises(ModelError, match="no repository org/absent that you may read") as caught:
            fetch("org/absent")
        assert "HF_TOKEN" in caught.value.hint

    def test_a_missing_revision(self, hub: FakeHub) -> None:
        with pytest.raises(ModelError, match="no such revision"):
            fetch(f"{NAME}@nightly")

    def test_a_gated_repository(self, hub: FakeHub) -> None:
        hub.gated.add(NAME)
        with pytest.raises(ModelError, match="gated") as caught:
            fetch(NAME)
        assert "accept them at" in caught.value.hint

    def test_a_repository_without_weights(self, hub: FakeHub, tmp_path: Path, single: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        (bare / "config.json").write_bytes((single / "config.json").read_bytes())
        hub.repositories[NAME] = bare
        with pytest.raises(ModelError, match="no weights in mlx-lm format"):
            fetch(NAME)

    def test_layers_beyond_the_model(self, hub: FakeHub) -> None:
        with pytest.raises(ModelError, match="layers 7-8 lie outside model, which has layers 0-7"):
            fetch(NAME, ModelParts(LayerRange(7, 9)))
        assert hub.weights_sent() == 0

    def test_no_hub_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelError, match=r"org/model is not on this disk, and .* cannot be reached") as caught:
            fetch(NAME)
        assert "smollm2-135m" in caught.value.hint

    def test_a_server_that_is_not_a_hub(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/nowhere")
        with pytest.raises(ModelError, match="answered 404"):
            fetch(NAME)

    def test_a_full_disk(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "_SPARE_BYTES", 1 << 60)
        with pytest.raises(ModelError, match="GB free") as caught:
            fetch(NAME)
        assert "EDGEPP_CACHE" in caught.value.hint

    def test_a_cache_that_cannot_be_written(
        self, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(ModelError, match="cannot be stored"):
            fetch(NAME)


class TestHostileHubs:
    def test_names_that_leave_the_folder_are_not_fetched(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.extra_names = ["../evil.json", "/etc/evil.json", "a/b.json", ".hidden.json", "..json", "C:\\x.json"]
        folder = fetch(NAME, ModelParts(embedding_and_head=True))
        assert not [path for path in tmp_path.rglob("*") if "evil" in path.name or "hidden" in path.name]
        assert {path.name for path in folder.glob("*.json")} == {
            "config.json",
            "model.safetensors.partial.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }

    @pytest.mark.parametrize("name", ["../evil.safetensors", "/evil.safetensors", "a/b.safetensors", "evil.bin", 3])
    def test_an_index_may_not_name_paths(self, hub: FakeHub, tmp_path: Path, indexed: Path, name: object) -> None:
        model = tmp_path / "hostile"
        model.mkdir()
        for path in indexed.glob("*.json"):
            (model / path.name).write_bytes(path.read_bytes())
        index = {"weight_map": {"model.layers.0.mlp.up_proj.weight": name}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        hub.repositories[NAME] = model
        with pytest.raises(ModelError, match=r"index\.json is damaged"):
            fetch(NAME)
        assert hub.weights_sent() == 0

    def test_an_index_may_not_name_unlisted_files(self, hub: FakeHub, tmp_path: Path, indexed: Path) -> None:
        model = make_checkpoint(tmp_path / "m", SHAPE, files=2)
        (model / "model-00002-of-00002.safetensors").unlink()
        hub.repositories[NAME] = model
        with pytest.raises(ModelError, match="which the repository lacks"):
            fetch(NAME)

    def test_an_index_may_not_name_tensors_that_no_file_has(self, hub: FakeHub, tmp_path: Path) -> None:
        model = make_checkpoint(tmp_path / "m", SHAPE, files=2)
        path = model / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["model.layers.0.extra.weight"] = "model-00001-of-00002.safetensors"
        path.write_text(json.dumps(index))
        hub.repositories[NAME] = model
        with pytest.raises(ModelError, match="does not hold layers 0"):
            fetch(NAME, ModelParts(LayerRange(0, 1)))

    @pytest.mark.parametrize("head", [b"", b"1234", (1 << 40).to_bytes(8, "little") + b"{}", bytes(64)])
    def test_an_invalid_header_is_refused(self, hub: FakeHub, tmp_path: Path, single: Path, head: bytes) -> None:
        model = tmp_path / "m"
        model.mkdir()
        (model / "config.json").write_bytes((single / "config.json").read_bytes())
        (model / "model.safetensors").write_bytes(head)
        hub.repositories[NAME] = model
        with pytest.raises(ModelError, match=r"safetensors|answered 416"):
            fetch(NAME)
        assert not is_cached(NAME)

    def test_code_in_a_model_stops_the_fetch_before_its_weights(self, hub: FakeHub, tmp_path: Path) -> None:
        model = make_checkpoint(tmp_path / "m", SHAPE)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
        hub.repositories[NAME] = model
        with pytest.raises(ModelError, match="run code of its own"):
            fetch(NAME)
        assert hub.weights_sent() == 0

    def test_the_token_stays_with_the_hub(self, hub: FakeHub, single: Path) -> None:
        with serving(FakeHub({NAME: single})) as cdn:
            hub.redirect_to = cdn.url.replace("127.0.0.1", "localhost")
            fetch(NAME, ModelParts(LayerRange(0, 1)))
            assert all("hf_secret" in headers.get("authorization", "") for _, headers in lowered(hub))
            assert cdn.requests
            assert not any("authorization" in headers for _, headers in lowered(cdn))

    def test_a_small_file_may_not_be_huge(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "max_file_bytes", lambda name: 1000)
        with pytest.raises(ModelError, match=r"tokenizer\.json of org/model has \d+ bytes"):
            fetch(NAME)


def lowered(hub: FakeHub) -> list[tuple[str, dict[str, str]]]:
    return [(path, {key.lower(): value for key, value in headers.items()}) for path, headers in hub.requests]
