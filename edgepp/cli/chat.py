"""`edgepp chat`: the prompt, and the options of an answer."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepp.cli.answer_options import GenerateArguments, with_recommended
from edgepp.cli.chat_model import ModelArguments, open_model
from edgepp.cli.options import (
    BACKENDS,
    KV_BITS,
    KV_BITS_HELP,
    MODEL_HELP,
    SPECULATE_HELP,
    TENSOR,
    TENSOR_HELP,
    TOGETHER_HELP,
    CheckedText,
    SectionedCommand,
    TextFile,
    complete_models,
    given_as,
    piped,
)
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.engine.request import GenerateOptions

_PIPE_TIMEOUT_S = 2.0
"""Wait for the first bytes of a pipe before a message says that the command waits for the end of the pipe."""


@dataclass(frozen=True)
class PromptArguments:
    """The prompt of `edgepp chat`, and the form in which the answer is shown."""

    prompt: str | None = None
    """None for an interactive chat."""
    system: str | None = None
    raw: bool = False
    """Whether the prompt is sent unchanged, without the chat template of the model."""
    choices: int | None = None
    """Number of answers to the prompt, printed with numbers; None for one answer, printed as it comes."""
    as_json: bool = False
    trace: str | None = None
    """File for the trace of the answer."""

    def with_piped(self) -> PromptArguments:
        """The same arguments, checked, with piped input appended to the prompt.

        Raises:
            UsageError: the options contradict each other, the prompt is missing or empty, or the piped input is too
                large or not UTF-8.
        """
        prompt = _with_piped(self.prompt)
        if prompt is None and (self.as_json or self.raw or self.choices is not None):
            raise UsageError("--json, --raw and --choices need a prompt", "give it with -p or pipe it in")
        if self.raw and self.system is not None:
            raise UsageError("--raw and --system exclude each other", "write the system prompt into the prompt")
        if prompt is None and (sys.stdin is None or sys.stdin.closed):
            raise UsageError("standard input is closed, so no prompt can be typed", "give a prompt with -p")
        if self.trace is not None and (prompt is None or self.choices is not None):
            raise UsageError("--trace is for one answer to one prompt", "give the prompt with -p, and no --choices")
        if prompt is not None and not prompt.strip():
            raise UsageError("the prompt is empty", "give a prompt with -p, or pipe one in")
        return replace(self, prompt=prompt)


@click.command(
    cls=SectionedCommand,
    sections={
        "Model": (
            "model", "peers", "stages", "tensor", "alone", "backend", "threads", "exact", "codec", "kv_bits",
            "speculate", "speculate_together",
        ),
        "Prompt": ("prompt", "system", "raw"),
        "Answer": ("max_tokens", "choices", "stop", "schema", "regex", "grammar", "logprobs", "ignore_eos", "trace"),
        "Sampling": (
            "temperature", "seed", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
            "presence_penalty",
        ),
    },
)  # fmt: skip
@click.option(
    "-m", "--model", shell_complete=complete_models, help=MODEL_HELP + "  [default: the model of the cluster]"
)
@click.option(
    "-p",
    "--prompt",
    type=CheckedText(),
    help="Answer this prompt and exit. Piped input is a prompt too, or is appended to this one.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="HOST:PORT",
    help="Address of `edgepp serve`, like 10.0.0.2:5700, if it is not found; or, once per stage,"
    " of `edgepp join -m M --layers A-B`.",
)
@click.option("--stages", type=int, metavar="K", help="Run the model on this machine, split over K stage processes.")
@click.option("--tensor", type=TENSOR, metavar="T|A:B[:…]", help=TENSOR_HELP)
@click.option("--alone", is_flag=True, help="Run the model on this machine, even if the machine belongs to a cluster.")
@click.option("--system", type=CheckedText(), help="System prompt: instructions for the whole conversation.")
@click.option("--raw", is_flag=True, help="Send the prompt unchanged, without the chat template of the model.")
@click.option("--choices", type=int, metavar="N", help="Compute N answers to the prompt at once, and number them.")
@click.option("-n", "--max-tokens", type=int, metavar="N", help="Longest answer, in tokens.  [default: 512]")
@click.option(
    "--temperature",
    "--temp",
    type=float,
    help="0 always takes the likeliest token; higher values vary more.  [default: as the model recommends]",
)
@click.option(
    "--top-p",
    type=float,
    help="Sample from the likeliest tokens whose probabilities add up to this, like 0.9."
    "  [default: as the model recommends]",
)
@click.option(
    "--top-k",
    type=int,
    metavar="K",
    help="Sample from the K likeliest tokens, like 40.  [default: as the model recommends]",
)
@click.option(
    "--min-p",
    type=float,
    help="Exclude tokens less likely than this fraction of the likeliest one, like 0.05.  [default: 0.0]",
)
@click.option(
    "--repetition-penalty",
    type=float,
    help="Above 1, like 1.1, recent tokens become less likely.  [default: as the model recommends]",
)
@click.option(
    "--frequency-penalty",
    type=float,
    help="Above 0, up to 2, tokens become less likely with each use in the answer.  [default: 0.0]",
)
@click.option(
    "--presence-penalty",
    type=float,
    help="Above 0, up to 2, tokens become less likely after their first use in the answer.  [default: 0.0]",
)
@click.option("--logprobs", type=int, metavar="K", help="Show the probability of each token, and K likeliest tokens.")
@click.option("--schema", type=TextFile(), metavar="FILE", help="Force JSON that fits the JSON schema in FILE.")
@click.option(
    "--regex",
    type=CheckedText(),
    metavar="PATTERN",
    help="Force text that matches this regular expression from start to end.",
)
@click.option("--grammar", type=TextFile(), metavar="FILE", help="Force text of the Lark grammar in FILE.")
@click.option("--seed", type=int, help="Whole number that makes a sampled answer repeatable, like 1.")
@click.option(
    "--stop", type=CheckedText(), multiple=True, metavar="TEXT", help="End the answer before TEXT; may be given again."
)
@click.option("--ignore-eos", is_flag=True, help="Continue to --max-tokens, for measurements.")
@click.option(
    "--trace",
    metavar="FILE",
    help="Write to FILE what each process did for the answer, and when; open FILE at https://ui.perfetto.dev. See"
    " also `edgepp trace`.",
)
@click.option("--backend", type=BACKENDS, help="Library that computes on this machine.  [default: auto]")
@click.option(
    "--threads",
    type=int,
    metavar="N",
    help="Compute threads per process on this machine.  [default: all cores, shared]",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Float32 arithmetic, so that tokens do not depend on the stages; slower. Always takes the likeliest token,"
    " unless --temperature or --seed is given.",
)
@click.option(
    "--codec",
    metavar="NAME[,…]",
    help="Compression of all links, or one name per link: auto (whichever saves time), none, lz4, zstd, int8 (lossy)."
    "  [default: auto]",
)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP + " On this machine only.")
@click.option("--speculate", metavar="HOW", help=SPECULATE_HELP + " On this machine only.  [default: lookup]")
@click.option("--speculate-together", is_flag=True, help=TOGETHER_HELP + " On this machine only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens, rates and stages.")
@given_as(lambda: PromptArguments, lambda: GenerateArguments, lambda: ModelArguments)
def chat(asking: PromptArguments, generating: GenerateArguments, where: ModelArguments) -> None:
    """Chat with the model of the cluster, or with one on this machine.

    Without a prompt an interactive chat begins; /help there lists its commands.

    \b
    Interactive, with the cluster of this machine:
        edgepp chat
    One answer of a model on this machine, without a cluster:
        edgepp chat -m smollm2-135m -p "Why is the sky blue?"
    About a file, and as JSON for a program:
        edgepp chat -p "Summarize this:" --json < notes.txt
    """
    import asyncio

    asking, options = asking.with_piped(), generating.options()
    if asking.choices is not None:
        from edgepp.python_api.question import choice_options

        choice_options(asking.choices, options)  # checks the number before a model is loaded
    asyncio.run(_chat(asking, options, generating.given, where))


def _with_piped(prompt: str | None) -> str | None:
    """The prompt followed by the piped input; None if there is neither.

    With a prompt only a pipe or a file is read: other kinds of standard input may never end.

    Raises:
        UsageError: the piped input is too large or not UTF-8.
    """
    from edgepp.ui.screen import say

    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return prompt
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if prompt is not None:
        if not stat.S_ISFIFO(mode) and not stat.S_ISREG(mode):
            return prompt
        if not select.select([sys.stdin.fileno()], [], [], _PIPE_TIMEOUT_S)[0]:
            say("waiting for the end of the piped input, which is part of the prompt; </dev/null for none", err=True)
    text = piped().rstrip("\n")
    return text if prompt is None else "\n\n".join(part for part in (prompt, text) if part.strip())


async def _chat(
    asking: PromptArguments, options: GenerateOptions, given: Mapping[str, Any], where: ModelArguments
) -> None:
    from edgepp.ui.chat import answer_once, answer_several, write_trace
    from edgepp.ui.screen import say

    prompt, system, choices = asking.prompt, asking.system, asking.choices
    if asking.trace is not None:
        from edgepp.ui.trace import check_writable

        check_writable(Path(asking.trace))  # here, not after the answer
    model = await open_model(where, quiet=asking.as_json, traces=asking.trace is not None)
    try:
        options = replace(
            options, sampling=with_recommended(options.sampling, model.sampling, given, exact=where.exact)
        )
        if choices is not None and choices > 1 and not options.sampling.temperature:
            say("all choices are equal at temperature 0: add, for instance, --temperature 0.8", err=True)
        if prompt is None:
            from edgepp.ui.conversation import InteractiveChat

            await InteractiveChat(model, options, system).run()
            return
        messages = [{"role": "system", "content": system}] if system else []
        asked = prompt if asking.raw else [*messages, {"role": "user", "content": prompt}]
        if choices is None:
            answer = await answer_once(model, asked, options, raw=asking.raw, as_json=asking.as_json)
            if asking.trace is not None:
                await write_trace(model, answer, asking.trace)
            answers = [answer]
        else:
            answers = await answer_several(model, asked, choices, options, raw=asking.raw, as_json=asking.as_json)
        if any(answer.finish_reason == "cancelled" for answer in answers):
            raise KeyboardInterrupt  # Ctrl-C stopped an answer: what came of it is printed, and the status says so
    finally:
        await model.close()
