"""A hostile model folder gives a one-sentence error within limits of memory and time, and never blocks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.backend.base import BackendOptions
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.bounded_files import tokenizer_files
from edgepp.model.fetch import fetch
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.safetensors_header import parse_header
from tests.builders.checkpoints import Checkpoints
from tests.builders.properties import examples

INDEX = "model.safetensors.index.json"
MOST_BYTES = 512 << 20
MAX_CPU_S = 20.0  # CPU time of this thread, many times that of any input


@contextmanager
def bounded(most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """Check that the block stays within limits of memory and of CPU time of this thread."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
        assert time.thread_time() - began < MAX_CPU_S
    finally:
        tracemalloc.stop()


@contextmanager
def refused(match: str = "", most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """Check that ``call`` raises one short sentence, within the limits."""
    with bounded(most_bytes), pytest.raises(ModelError, match=match) as caught:
        yield
    assert_sentence(caught.value)


def outcome(call: Callable[[], Any]) -> Any:
    """The result of ``call``, or its ModelError; other exceptions fail the test."""
    try:
        return call()
    except ModelError as error:
        assert_sentence(error)
        return error


def assert_sentence(error: ModelError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600


@pytest.fixture
def single(checkpoints: Checkpoints) -> Path:
    return checkpoints(TINY)


@pytest.fixture
def indexed(checkpoints: Checkpoints) -> Path:
    return checkpoints(TINY, files=2)


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def load_all(folder: Path) -> Checkpoint:
    """Everything that a process does with a folder before it loads weights."""
    fetch(str(folder))
    Tokenizer.load(folder)
    return Checkpoint.open(folder)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 108 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
}


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.parent / ".pipe")
    path.symlink_to(path.parent / ".pipe")


SPECIAL["link to a pipe"] = link_to_pipe
NAMES = (
    "config.json", "generation_config.json", "model.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "special_tokens_map.json", "model.safetensors.partial.json",
)  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", NAMES)
def test_only_regular_files_are_opened(tmp_path: Path, single: Path, name: str, kind: str) -> None:
    folder = copied(single, tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    SPECIAL[kind](folder / name)
    result = outcome(lambda: load_all(folder))
    if isinstance(result, ModelError):
        assert name in str(result) or "tokenizer" in str(result) or "model.safetensors" in str(result)
    else:
        assert name not in ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", INDEX, "tokenizer.json", "chat_template.jinja"]
)
def test_an_oversized_file_is_not_read(tmp_path: Path, single: Path, name: str) -> None:
    folder = copied(single, tmp_path / "m")
    with (folder / name).open("wb") as stream:
        stream.truncate(1 << 40)
    with refused(name.split(".")[0]):
        load_all(folder)


def test_links_into_the_cache_of_the_hub_library_are_followed(tmp_path: Path, single: Path) -> None:
    folder = tmp_path / "snapshots" / "m"
    folder.mkdir(parents=True)
    blobs = copied(single, tmp_path / "blobs")
    for path in blobs.iterdir():
        (folder / path.name).symlink_to(Path("../../blobs") / path.name)
    assert load_all(folder).tensors.keys() == Checkpoint.open(single).tensors.keys()


STRAYS = (
    "model.safetensors", "model-00003-of-00009.safetensors", "consolidated.safetensors", "adapters.safetensors",
    "._model-00001-of-00002.safetensors", ".hidden.safetensors", "model-q4.safetensors", "model.safetensors.bak",
)  # fmt: skip


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("content", ["another model", "rubbish", "folder", "pipe"])
def test_with_an_index_only_its_files_are_used(
    tmp_path: Path, indexed: Path, single: Path, stray: str, content: str
) -> None:
    folder = copied(indexed, tmp_path / "m")
    before = Checkpoint.open(folder)
    if content == "another model":
        make_checkpoint(tmp_path / "other", TINY, seed=9)
        shutil.copy(tmp_path / "other" / "model.safetensors", folder / stray)
    elif content == "rubbish":
        (folder / stray).write_bytes(b"\x00\x05\x16\x07 Mac OS X" + bytes(4000))
    elif content == "folder":
        (folder / stray).mkdir()
    else:
        os.mkfifo(folder / stray)
    after = load_all(folder)
    assert after.tensors == before.tensors
    assert after.fingerprint == before.fingerprint
    assert after.layer_bytes(LayerRange(0, 4)) == before.layer_bytes(LayerRange(0, 4))
    MlxBackend().load_stage(after, LayerRange(0, 1), BackendOptions())


def test_a_tensor_in_two_files_is_read_from_the_one_in_the_index(tmp_path: Path, indexed: Path) -> None:
    """Both files of the index hold every tensor of the first, and the other training's come last in any order."""
    import mlx.core as mx

    folder = copied(indexed, tmp_path / "m")
    first, second = (str(folder / f"model-0000{n}-of-00002.safetensors") for n in (1, 2))
    mine: Any = mx.load(first)
    theirs: Any = mx.load(second)
    mx.eval(mine, theirs)
    for name in mine:
        theirs[name] = mx.zeros_like(mine[name])
    mx.save_safetensors(second, theirs)
    expected = MlxBackend().load_embedding_and_head(Checkpoint.open(indexed), BackendOptions()).embed([5, 6])
    for backend in (MlxBackend(), OnnxBackend()):
        assert (
            backend.load_embedding_and_head(Checkpoint.open(folder), BackendOptions(exact=True)).embed([5, 6])
            == expected
        ).all()


def test_without_an_index_one_file_or_one_set_is_used(tmp_path: Path, indexed: Path, single: Path) -> None:
    folder = copied(indexed, tmp_path / "set")
    (folder / INDEX).unlink()
    assert load_all(folder).tensors.keys() == Checkpoint.open(indexed).tensors.keys()
    shutil.copy(single / "model.safetensors", folder / "adapters.safetensors")
    assert load_all(folder).tensors.keys() == Checkpoint.open(indexed).tensors.keys()
    shutil.copy(single / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    with refused("parts of two models"):
        Checkpoint.open(folder)
    (folder / "model-00001-of-00001.safetensors").unlink()
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with refused("twice"):
        Checkpoint.open(folder)


PLAIN_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
TENSOR = "model.layers.0.mlp.up_proj.weight"
FILE = "model-00001-of-00002.safetensors"
WEIGHT_MAPS = st.dictionaries(
    st.one_of(st.sampled_from([TENSOR, "x", "\ud800", ""]), st.text(max_size=5)),
    st.one_of(
        st.sampled_from([FILE, "absent.safetensors", "../m/" + FILE, "/etc/passwd", ".x.safetensors", "x" * 300]),
        PLAIN_JSON,
    ),
    max_size=3,
)


def opened_or_refused(folder: Path) -> None:
    with bounded(64 << 20):
        checkpoint = outcome(lambda: Checkpoint.open(folder))
    if isinstance(checkpoint, Checkpoint):
        assert all(place.file.parent == folder for place in checkpoint.tensors.values())
        assert len(checkpoint.fingerprint) == 16


SHARED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(index=st.one_of(st.fixed_dictionaries({"weight_map": WEIGHT_MAPS}), PLAIN_JSON))
@SHARED
def test_any_index_is_used_or_refused(tmp_path_factory: pytest.TempPathFactory, indexed: Path, index: Any) -> None:
    folder = copied(indexed, tmp_path_factory.mktemp("index") / "m")
    (folder / INDEX).write_text(json.dumps(index))
    opened_or_refused(folder)


CONFIG = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rms_norm_eps", "vocab_size", "rope_theta", "rope_scaling", "rope_parameters", "hidden_act",
    "max_position_embeddings", "tie_word_embeddings", "torch_dtype", "quantization", "quantization_config",
    "layer_types", "text_config", "sliding_window", "use_sliding_window", "partial_rotary_factor", "attention_bias",
    "mlp_bias", "n_layer", "architectures",
)  # fmt: skip


@given(
    change=st.dictionaries(st.sampled_from(CONFIG), PLAIN_JSON, max_size=2),
    family=st.sampled_from(["llama", "qwen3", "mistral", "gemma2", "mixtral"]),
)
@SHARED
def test_any_configuration_is_used_or_refused(
    tmp_path_factory: pytest.TempPathFactory, single: Path, change: dict[str, Any], family: str
) -> None:
    folder = copied(single, tmp_path_factory.mktemp("config") / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": family, **change}))
    opened_or_refused(folder)
    for backend in (MlxBackend(), OnnxBackend()):
        outcome(partial(load_first_layer, backend, folder))


def load_first_layer(backend: Any, folder: Path) -> None:
    backend.load_stage(Checkpoint.open(folder), LayerRange(0, 1), BackendOptions(exact=True))


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "Q4", 3, None]),
        "shape": st.one_of(st.lists(st.sampled_from([0, 1, 2, 4, -1, 2**62, 2.0, True, "2"]), max_size=4), PLAIN_JSON),
        "data_offsets": st.one_of(st.lists(st.sampled_from([0, 4, 16, 32, -4, 2**63, 0.0]), max_size=3), PLAIN_JSON),
    },
)


@given(header=st.dictionaries(st.text(max_size=4), st.one_of(ENTRY, PLAIN_JSON), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_header_is_used_or_refused(header: dict[str, Any]) -> None:
    raw = json.dumps(header).encode()
    size = 8 + len(raw) + 32
    places = outcome(lambda: parse_header(raw, Path("model.safetensors"), size))
    if isinstance(places, ModelError):
        return
    for place in places:
        assert 8 + len(raw) <= place.start <= place.start + place.nbytes <= size
    spans = sorted((place.start, place.start + place.nbytes) for place in places if place.nbytes)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def entry(**changes: Any) -> str:
    return json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes})


LARGE: dict[str, Callable[[], bytes]] = {
    "400,000 dimensions": lambda: f'{{"x": {entry(shape=[2**62] * 400_000)}}}'.encode(),
    "400,000 dimensions of one": lambda: f'{{"x": {entry(shape=[1] * 400_000)}}}'.encode(),
    "8 absurd dimensions": lambda: f'{{"x": {entry(shape=[2**62] * 8)}}}'.encode(),
    "brackets": lambda: b'{"x": [' + b"[]," * 8_000_000 + b"[]]}",
    "depth": lambda: b'{"x": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "a number of a million digits": lambda: b'{"x": ' + b"9" * 1_000_000 + b"}",
    "one name twice": lambda: f'{{"x": {entry()}, "x": {entry()}}}'.encode(),
    "two tensors in one place": lambda: f'{{"x": {entry()}, "y": {entry()}}}'.encode(),
    "a name of a million letters": lambda: f'{{"{"x" * 1_000_000}": {entry(dtype="Q")}}}'.encode(),
    "a surrogate": lambda: f'{{"\\ud800": {entry()}}}'.encode(),
}


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0", "F4", "C64"])
def test_an_unsupported_dtype_is_named(dtype: str) -> None:
    with refused(f"x of model.safetensors is of the type {dtype}, which edgepp does not read"):
        parse_header(f'{{"x": {entry(dtype=dtype)}}}'.encode(), Path("model.safetensors"), 1000)


@pytest.mark.parametrize("kind", LARGE)
def test_a_header_costs_little_memory_and_time(kind: str) -> None:
    raw = LARGE[kind]()
    with refused("damaged"):
        parse_header(raw, Path("model.safetensors"), 1 << 40)


def test_a_header_of_many_tensors_is_read() -> None:
    entries = ", ".join(f'"t{n}": {entry(data_offsets=[4 * n, 4 * n + 4])}' for n in range(50_000))
    with bounded():
        assert len(parse_header(f"{{{entries}}}".encode(), Path("model.safetensors"), 1 << 40)) == 50_000


def test_more_layers_than_weights_are_refused(tmp_path: Path, single: Path) -> None:
    folder = copied(single, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 900}))
    with refused("900 layers .* weights of 4"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("backend", [MlxBackend(), OnnxBackend()], ids=["mlx", "onnx"])
@pytest.mark.parametrize(
    "change", [{"vocab_size": 321}, {"num_key_value_heads": 4}, {"intermediate_size": 64}, {"hidden_size": 128}]
)
def test_both_backends_check_tensors_against_the_configuration(
    tmp_path: Path, single: Path, change: dict[str, Any], backend: Any
) -> None:
    folder = copied(single, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    checkpoint = Checkpoint.open(folder)

    def load() -> None:
        backend.load_embedding_and_head(checkpoint, BackendOptions(exact=True))
        backend.load_stage(checkpoint, LayerRange(0, 1), BackendOptions(exact=True))

    with pytest.raises(ModelError, match=r"has shape .*; the model needs"):
        load()


def test_a_set_without_its_head_is_not_mistaken_for_a_tied_model(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", replace(TINY, tied=False), files=2)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    for backend in (MlxBackend(), OnnxBackend()):
        with pytest.raises(ModelError, match="lacks"):
            backend.load_embedding_and_head(Checkpoint.open(folder), BackendOptions(exact=True))


@given(change=st.dictionaries(st.sampled_from(CONFIG), PLAIN_JSON, max_size=2))
@settings(SHARED, max_examples=examples(40))  # each starts a process
def test_a_tokenizer_with_any_configuration_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, single: Path, change: dict[str, Any]
) -> None:
    folder = copied(single, tmp_path_factory.mktemp("tokenizer") / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    outcome(lambda: Tokenizer.load(folder))


@pytest.mark.parametrize(
    "change", [{"hidden_size": 2**31 - 1}, {"num_attention_heads": 2**20, "num_key_value_heads": 1}]
)
def test_sizes_that_transformers_refuses_are_a_sentence(tmp_path: Path, single: Path, change: dict[str, Any]) -> None:
    folder = copied(single, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with refused("the tokenizer of m cannot be read"):
        Tokenizer.load(folder)


def test_a_token_of_a_million_characters_is_refused(tmp_path: Path, single: Path) -> None:
    """An answer that repeats it would have gigabytes."""
    folder = copied(single, tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [{**tokenizer["added_tokens"][0], "id": 1000, "content": "a" * 1_000_000}]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with refused("m cannot answer: a token of its tokenizer has 1000000 characters"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("value", ["2", [2, "3"], {"id": 2}, 2.5, True, [[2]]])
def test_an_end_of_another_type_is_refused(tmp_path: Path, single: Path, value: Any) -> None:
    folder = copied(single, tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with refused(r"generation_config\.json of m has no usable eos_token_id"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, single: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(single, tmp_path / "m")
    real = os.open

    def closed(path: Any, *flags: Any) -> int:
        if Path(path) == folder / name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *flags)

    monkeypatch.setattr(os, "open", closed)
    with refused(f"{name} cannot be read: Permission denied"):
        Checkpoint.open(folder)


def test_a_large_file_that_is_not_read_does_not_matter(tmp_path: Path, single: Path) -> None:
    folder = copied(single, tmp_path / "m")
    with (folder / "results.json").open("wb") as stream:
        stream.truncate(1 << 40)
    os.mkfifo(folder / "notes.txt")
    load_all(folder)


def rewritten(folder: Path, change: Callable[[dict[str, Any], bytearray], None]) -> Path:
    """The folder with another header, or other numbers, in its only file of weights."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    stop = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:stop]), bytearray(raw[stop:])
    change(header, data)
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return folder


def loaded(folder: Path, backend: Any, layers: LayerRange | None) -> None:
    """Load all layers, or with None embedding and head."""
    checkpoint, options = Checkpoint.open(folder), BackendOptions()
    if layers is None:
        backend.load_embedding_and_head(checkpoint, options)
    else:
        backend.load_stage(checkpoint, layers, options)


PARTS = [("model.layers.1.mlp.up_proj.weight", LayerRange(0, 4)), ("model.norm.weight", None)]


@pytest.mark.parametrize("backend", [MlxBackend(), OnnxBackend()], ids=["mlx", "onnx"])
@pytest.mark.parametrize("dtype", ["I32", "U32"])
@pytest.mark.parametrize(("name", "layers"), PARTS)
def test_whole_numbers_in_place_of_weights_are_refused(
    tmp_path: Path, single: Path, backend: Any, dtype: str, name: str, layers: LayerRange | None
) -> None:
    """Both backends computed with them, and gave different tokens."""
    folder = rewritten(copied(single, tmp_path / "m"), lambda header, _: header[name].update(dtype=dtype))
    with pytest.raises(ModelError, match=rf"{name} of m is of the type (u?int32|[IU]32), which"):
        loaded(folder, backend, layers)


@pytest.mark.parametrize(("name", "layers"), PARTS)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_damaged_weights_are_not_blamed_on_the_family(
    tmp_path: Path, single: Path, name: str, layers: LayerRange | None, number: float
) -> None:
    def damage(header: dict[str, Any], data: bytearray) -> None:
        start, _ = header[name]["data_offsets"]
        data[start : start + 4] = struct.pack("<f", number)

    folder = rewritten(copied(single, tmp_path / "m"), damage)
    with pytest.raises(ModelError, match=r"the weights of the model are damaged: .* holds numbers that are not finite"):
        loaded(folder, MlxBackend(), layers)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_says_how_to_fetch_the_file(tmp_path: Path, single: Path, name: str) -> None:
    folder = copied(single, tmp_path / "m")
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n")
    read: Callable[[Path], object] = tokenizer_files if name == "tokenizer.json" else Checkpoint.open
    with pytest.raises(ModelError, match="was not fetched: it is a pointer of Git LFS") as told:
        read(folder)
    assert "git lfs pull" in told.value.hint
