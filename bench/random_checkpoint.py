"""Make a checkpoint with random weights, to measure the speed of a model without its download.

    python -m bench.random_checkpoint /tmp/random-1b --like llama-3.2-1b-4bit
    python -m bench.random_checkpoint /tmp/small --layers 8 --hidden 512 --heads 8 --kv-heads 2 --ffn 1536

Options in addition to ``--like`` change the shape of that card. The answers are noise; times and sizes are real.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from bench.toolkit.script import Result, ScriptArguments, script
from edgepp.model.catalogue.cards import DTYPE_BYTES, Shape, find
from edgepp.model.random_checkpoint import FAMILIES, LLAMA3_ROPE, make_checkpoint

DEFAULT = Shape(
    layers=8,
    heads=8,
    kv_heads=2,
    head_size=64,
    hidden=512,
    ffn=1536,
    vocabulary=4096,
    tied=True,
    context=4096,
)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.add_argument("path", type=Path, help="folder to write")
    parser.add_argument("--like", metavar="CARD", help="take the shape of a model in `edgepp models list`")
    parser.add_argument("--family", choices=tuple(FAMILIES))
    for name in ("layers", "heads", "kv-heads", "head-size", "hidden", "ffn", "vocabulary", "context"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, help="one matrix embeds and is the head")
    parser.add_argument("--dtype", choices=tuple(DTYPE_BYTES), help="of norms, scales and unquantised weights")
    parser.add_argument("--bits", type=int, choices=(0, 2, 3, 4, 6, 8), help="0: not quantised")
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128))
    parser.add_argument("--files", type=int, default=1, help="safetensors files to spread the layers over")
    parser.add_argument("--llama3-rope", action="store_true", help="Llama 3.2's rope scaling")
    parser.add_argument("--tokenizer", type=Path, help="copy the tokenizer of this model folder")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def shape_of(options: argparse.Namespace) -> Shape:
    """Shape from the options."""
    base: Shape = find(options.like) if options.like else DEFAULT
    sizes = {field.name: getattr(base, field.name) for field in fields(Shape)}
    asked = {name: value for name in sizes if (value := getattr(options, name, None)) is not None}
    shape = replace(Shape(**sizes), **asked)
    if options.bits == 0:
        return replace(shape, bits=None, group_size=None, embedding_bits=None)
    return replace(shape, group_size=shape.group_size or 64) if shape.bits else shape


def measured(options: argparse.Namespace) -> Result:
    """Write the checkpoint."""
    shape = shape_of(options)
    began = time.perf_counter()
    make_checkpoint(
        options.path,
        shape,
        seed=options.seed,
        files=options.files,
        tokenizer=options.tokenizer,
        rope_theta=500000.0 if options.llama3_rope else 10000.0,
        rope_scaling=LLAMA3_ROPE if options.llama3_rope else None,
    )
    total = shape.layers * shape.layer_bytes() + shape.embedding_bytes() + shape.head_bytes()
    return {"weight_bytes": total, "seconds": time.perf_counter() - began}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield f"{result['path']}: {result['weight_bytes']} bytes of weights in {result['seconds']:.1f} s"


if __name__ == "__main__":
    script("random_checkpoint", parse, measured, lines)
