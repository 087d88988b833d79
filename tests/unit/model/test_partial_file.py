"""Arithmetic of byte ranges; a partly fetched file never lists a tensor of which bytes are missing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import ModelError
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.byte_ranges import Range, covers, cut, difference, total, union
from edgepp.model.weights.checkpoint import Checkpoint, layer_of
from edgepp.model.weights.partial_file import PartialFile

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(lambda r: r[0] <= r[1]), max_size=8)


def points(ranges: list[Range]) -> set[int]:
    return {n for start, stop in ranges for n in range(start, stop)}


@given(RANGES, RANGES, st.integers(0, 10))
def test_ranges_are_sets_of_bytes(a: list[Range], b: list[Range], gap: int) -> None:
    assert points(union(a)) == points(a)
    assert total(union(a)) == len(points(a))
    assert points(difference(a, b)) == points(a) - points(b)
    assert covers(b, (3, 9)) == ({*range(3, 9)} <= points(b))
    bridged = union(a, gap)
    assert points(bridged) >= points(a)
    assert all(right[0] - left[1] > gap for left, right in pairwise(bridged))


@given(RANGES, st.integers(1, 20))
def test_pieces_are_the_ranges(a: list[Range], size: int) -> None:
    pieces = cut(union(a), size)
    assert points(pieces) == points(a)
    assert total(pieces) == len(points(a))
    assert all(stop - start <= size for start, stop in pieces)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", TINY) / "model.safetensors"


def begin(folder: Path, source: Path) -> tuple[PartialFile, bytes]:
    """A folder with a configuration and a file of which only the header was fetched."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source.parent / "config.json").read_bytes())
    data = source.read_bytes()
    head = data[: 8 + int.from_bytes(data[:8], "little")]
    return PartialFile.create(folder / "model.safetensors", len(data), head), data


def test_a_file_grows_to_the_original(tmp_path: Path, source: Path) -> None:
    file, data = begin(tmp_path / "m", source)
    for layer in (2, 0, 3, 1, None):
        wanted = [place.name for place in file.places if layer_of(place.name) == layer]
        assert file.missing_tensors(wanted.__contains__) == wanted
        for start, stop in file.missing_ranges(wanted.__contains__):
            file.write(start, data[start:stop])
        before = Checkpoint.open(file.path.parent)
        assert not any(layer_of(name) == layer for name in before.tensors), "counts only once it is saved"
        file.save()
        held = Checkpoint.open(file.path.parent)
        assert [name for name in held.tensors if layer_of(name) == layer] == wanted
    assert file.path.read_bytes() == data
    assert not file.path.with_name("model.safetensors.partial.json").exists()


def test_a_tensor_with_a_missing_byte_is_missing(tmp_path: Path, source: Path) -> None:
    file, data = begin(tmp_path / "m", source)
    place = next(place for place in file.places if place.name == "model.layers.1.mlp.up_proj.weight")
    file.write(place.start, data[place.start : place.start + place.nbytes - 1])
    file.save()
    assert "model.layers.1.mlp.up_proj.weight" not in Checkpoint.open(tmp_path / "m").tensors
    again = PartialFile.open(file.path)
    assert again is not None
    last = place.start + place.nbytes - 1
    assert again.missing_ranges(lambda name: name == place.name) == [(last, last + 1)], "only the last byte is fetched"
    again.write(last, data[last : last + 1])
    again.save()
    assert place.name in Checkpoint.open(tmp_path / "m").tensors


def test_a_file_never_exists_without_its_record(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path / "m", source)
    assert not (tmp_path / "m" / "model.safetensors").exists()
    file, _ = begin(tmp_path / "n", source)
    assert Checkpoint.open(tmp_path / "n").tensors == {}
    assert file.path.with_name("model.safetensors.partial.json").exists()


def test_more_bytes_than_the_file_has_are_refused(tmp_path: Path, source: Path) -> None:
    file, data = begin(tmp_path / "m", source)
    with pytest.raises(ModelError, match="more bytes"):
        file.write(len(data) - 1, b"12")


@pytest.mark.parametrize("record", ["{", "{}", "[]", '{"ranges": [[1]]}', '{"ranges": [["a", 2]]}'])
def test_a_damaged_record_is_refused(tmp_path: Path, source: Path, record: str) -> None:
    file, _ = begin(tmp_path / "m", source)
    path = file.path.with_name("model.safetensors.partial.json")
    path.write_text(record)
    with pytest.raises(ModelError, match="damaged"):
        PartialFile.open(file.path)
    path.write_text(json.dumps({"tensors": [], "ranges": [[-5, 10**12]]}))
    assert PartialFile.open(file.path) is not None
