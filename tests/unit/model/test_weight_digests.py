"""Digests of the weights in a folder: equal for every copy of a model, whole or in part, and for no other training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edgepp.engine.same_weights import Holder, PipelineWeights
from edgepp.errors import ModelError, PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.safetensors_header import PARTIAL_SUFFIX
from edgepp.model.weights.weight_digests import ABSENT, SAMPLE_BYTES, differing, weight_digests
from tests.builders.checkpoints import Checkpoints

ALL = LayerRange(0, 4)


def digests(path: Path) -> tuple[int, ...]:
    return weight_digests(Checkpoint.open(path))


def test_one_file_and_several_have_the_same_digests(checkpoints: Checkpoints) -> None:
    assert digests(checkpoints()) == digests(checkpoints(files=3))
    assert ABSENT not in digests(checkpoints())


def test_another_training_differs_in_every_layer(checkpoints: Checkpoints) -> None:
    assert differing(digests(checkpoints()), digests(checkpoints(seed=1))) == (ALL, True)


@pytest.mark.parametrize("where", ["first", "middle"])
def test_a_change_of_one_tensor_names_its_layer(checkpoints: Checkpoints, tmp_path: Path, where: str) -> None:
    ours, theirs = checkpoints(), shutil.copytree(checkpoints(), tmp_path / "theirs")
    place = Checkpoint.open(theirs).tensors["model.layers.2.mlp.up_proj.weight"]
    assert place.nbytes > 4 * SAMPLE_BYTES
    with place.file.open("r+b") as stream:
        stream.seek(place.start + (place.nbytes // 2 if where == "middle" else 0))
        stream.write(b"another")
    assert differing(digests(ours), digests(theirs)) == (LayerRange(2, 3), False)


def test_what_a_folder_lacks_is_not_compared(checkpoints: Checkpoints, tmp_path: Path) -> None:
    whole, part = checkpoints(), shutil.copytree(checkpoints(), tmp_path / "part")
    (file,) = part.glob("*.safetensors")
    held = [name for name in Checkpoint.open(part).tensors if ".layers.1." in name or ".layers.3.mlp" in name]
    file.with_name(file.name + PARTIAL_SUFFIX).write_text(f'{{"tensors": {str(held).replace(chr(39), chr(34))}}}')
    found = digests(part)
    assert found == (ABSENT, ABSENT, digests(whole)[2], ABSENT, ABSENT)
    assert differing(digests(whole), found) == (None, False)
    assert differing(digests(checkpoints(seed=1)), found) == (LayerRange(1, 2), False)


def test_a_file_that_has_become_shorter_is_an_error(checkpoints: Checkpoints, tmp_path: Path) -> None:
    short = shutil.copytree(checkpoints(), tmp_path / "short")
    checkpoint = Checkpoint.open(short)
    (file,) = short.glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ModelError, match="ends before the tensor"):
        weight_digests(checkpoint)


def test_stages_are_compared_with_one_another_where_this_machine_has_no_layers() -> None:
    ours = PipelineWeights(Holder("this machine", "/here", (7, ABSENT, ABSENT)))
    low, high = Holder("stage 0", "/a", (ABSENT, 1, 2)), Holder("stage 1", "/b", (ABSENT, 1, 3))
    with pytest.raises(PlanError, match=r"stage 1 has .*: layer 1 in its folder /b differ from /a of stage 0"):
        ours.check([(LayerRange(0, 1), low), (LayerRange(1, 2), high)])


def test_a_stage_that_takes_the_place_of_another_has_its_weights() -> None:
    ours = PipelineWeights(Holder("this machine", "/here", (7, ABSENT, ABSENT)))
    former, same = Holder("stage 0", "/a", (7, 1, 2)), Holder("stage 0 again", "/c", (ABSENT, 1, 2))
    ours.check([(LayerRange(0, 2), former)])
    ours.check([(LayerRange(0, 2), same)])
    with pytest.raises(PlanError, match="layers 0-1 in its folder /b"):
        ours.check([(LayerRange(0, 2), Holder("another stage", "/b", (ABSENT, 8, 9)))])
