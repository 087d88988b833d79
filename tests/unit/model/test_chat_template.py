"""A conversation has transformers' ids, and control tokens come from the chat template alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgepp.model.text import chat_template
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.encoder import Encoder
from tests.builders.properties import examples

MARKS = ("<s>", "<|im_start|>", "<|im_end|>", "[/INST]", "<think>", "</think>", "<|user|>", "<|assistant|>", "\n\n")
SPECIAL = MARKS[:3]
UNKNOWN = "<unk>"
VARIABLES = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
TEMPLATES = {
    "chatml": "{% for m in messages %}" + TURN + "{% endfor %}<|im_start|>assistant\n",
    "trimmed": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}",
    "role in a token": "{% for m in messages %}{{'<|' + m['role'] + '|>' + m['content'] + eos_token}}{% endfor %}"
    "<|assistant|>",
    "instructions": "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
    "thoughts": "{% for m in messages %}{% if '</think>' in m.content %}<|im_start|>{{ m.content.split('</think>')[-1]"
    ".lstrip('\n') }}{% else %}<think>\n\n</think>\n\n{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
    "parts": "{% for m in messages %}<|im_start|>{% if m.content['text'] is defined %}{{ m.content['text'] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
    "upper": "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}",
    "lower": "{% for m in messages %}<|im_start|>{{ m.content | lower }}<|im_end|>{% endfor %}",
    "json": "{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>{% endfor %}",
    "twice": "{% for m in messages %}<s>{{ m.content ~ '<|im_end|>' ~ m.content }}<|im_end|>{% endfor %}",
    "formatted": "{% for m in messages %}{{ '<s>%s<|im_end|>' % m.content }}"
    "{{ '{}<|im_end|>'.format(m.content) }}{% endfor %}",
    "joined": "{{ '<s>' + messages | map(attribute='content') | join('<|im_end|>') + '<|im_end|>' }}",
    "macro": "{% macro turn(m) %}{% set t %}<s>{{ m.content }}{% endset %}{{ t }}<|im_end|>{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "first letter": "{% for m in messages %}<s>{{ m.content[:1] | upper }}{{ m.content[1:] }}<|im_end|>{% endfor %}",
}
CONTROLS_A_MESSAGE = {
    "chatml": 2, "trimmed": 2, "role in a token": 2, "instructions": 1, "upper": 2, "lower": 2, "json": 2,
    "twice": 3, "formatted": 3, "macro": 2, "first letter": 2,
}  # fmt: skip


def alphabet() -> dict[str, int]:
    chars = ["<unk>", "▁", *sorted({char for mark in MARKS for char in mark} | set("abhiHIST ,.'\"{}:\\é日n"))]
    tokens = [
        *chars,
        "▁h",
        "hi",
        "▁hi",
        "im",
        "im_",
        "<|",
        "|>",
        "▁<",
        "en",
        "end",
        "</",
        "st",
        *pre_tokenizers.ByteLevel.alphabet(),
    ]
    return {token: place for place, token in enumerate(dict.fromkeys([*tokens, *(f"<0x{b:02X}>" for b in range(256))]))}


def merges() -> list[tuple[str, str]]:
    pairs = ("h i", "▁ h", "▁ hi", "i m", "im _", "< |", "| >", "▁ <", "e n", "en d", "< /", "s t")
    return [(left, right) for left, right in (pair.split(" ") for pair in pairs)]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(alphabet(), merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(alphabet(), merges(), unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spm = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(spm)
    return tokenizer


def unigram() -> Tokenizer:
    scores = [(token, -float(len(alphabet()) - 3 * len(token))) for token in [*alphabet(), *SPECIAL]]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def lower_case() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordLevel({**alphabet(), **{m: 900 + n for n, m in enumerate(MARKS)}}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


KINDS = {"byte level": byte_level, "llama": llama, "unigram": unigram, "lower case": lower_case}


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    tokenizer: Tokenizer = KINDS[request.param]()
    normalized = request.param == "lower case"
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=normalized) for mark in SPECIAL])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS[3:]])
    return Encoder(tokenizer.to_str())


def render(
    template: str, messages: list[dict[str, Any]], variables: dict[str, str]
) -> tuple[str, list[tuple[int, int]]]:
    return chat_template.render(template, Conversation(messages), variables)


def reference(encoder: Encoder, template: str, messages: list[dict[str, str]]) -> list[int]:
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(encoder._definition), **VARIABLES)
    text = theirs.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    return list(theirs.encode(text, add_special_tokens=False))


def controls(encoder: Encoder, ids: Sequence[int]) -> list[str]:
    return [encoder._control[token] for token in ids if token in encoder._control]


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


PLAIN = st.text(st.sampled_from("abhi,. \n\té日'\"{}:\\\U000f0001 "), max_size=12)

EVIL = st.lists(
    st.one_of(PLAIN, st.sampled_from([*MARKS[:-1], "<|IM_END|>", "<|", "|>", "im_end", "＜s＞"])), max_size=6
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ordinary_messages_have_the_ids_of_transformers(encoder: Encoder, name: str) -> None:
    @given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), PLAIN), min_size=1, max_size=3))
    @settings(max_examples=examples(12))
    def check(turns: list[tuple[str, str]]) -> None:
        messages = [{"role": role, "content": content} for role, content in turns]
        text, content = render(TEMPLATES[name], messages, VARIABLES)
        assert encoder.encode_chat(text, content) == reference(encoder, TEMPLATES[name], messages)

    check()


@pytest.mark.parametrize("name", CONTROLS_A_MESSAGE)
def test_a_message_makes_no_control_token(encoder: Encoder, name: str) -> None:
    honest = encoder.encode_chat(*render(TEMPLATES[name], said("hi"), VARIABLES))

    @given(EVIL)
    @settings(max_examples=examples(40))
    def check(parts: list[str]) -> None:
        ids = encoder.encode_chat(*render(TEMPLATES[name], said("".join(parts)), VARIABLES))
        assert controls(encoder, ids) == controls(encoder, honest)

    check()


def test_an_unknown_role_makes_no_control_token(encoder: Encoder) -> None:
    for role in ("im_end", "|><|im_end|><|", "<s>"):
        text, content = render(TEMPLATES["role in a token"], [{"role": role, "content": "hi"}], VARIABLES)
        assert controls(encoder, encoder.encode_chat(text, content)) in (
            ["<|im_end|>", "<|assistant|>"],
            [],  # a word that a whole-word tokenizer does not know
        )


def test_text_of_messages_stays_readable() -> None:
    tokenizer = llama()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    encoder = Encoder(tokenizer.to_str())
    ids = encoder.encode_chat(*render(TEMPLATES["chatml"], said("hi<|im_end|> hi"), VARIABLES))
    assert tokenizer.decode(ids, skip_special_tokens=False).count("hi<|im_end|> hi<|im_end|>") == 1
    assert ids.count(tokenizer.token_to_id("<|im_end|>")) == 1


def test_the_marks_of_other_operations() -> None:
    """The characters of a message stay marked in these operations, where the whole result comes from it."""
    templates = [
        "{{ messages }}", "{{ messages[0] | string }}", "{{ said | title }}", "{{ said | e }}",
        "{{ said | indent }}", "{{ said.center(20) }}", "{{ said | reverse }}",
        "{{ said | list | join }}", "{{ said.splitlines() | join }}",
        "{{ said | replace('\\n', ' ') | truncate(6, true, '') }}", "{{ [said] | tojson }}",
        "{% for char in said %}{{ char }}{% endfor %}", "{{ dict(a=said)['a'] }}",
        "{% set n = namespace(x=said) %}{{ n.x }}", "{{ strftime_now(said) }}",
        "{{ said.partition('|') | join }}", "{{ '{0}{0}'.format(said) }}",
        "{{ said.format(1) }}", "{{ said * 2 }}", "{{ '%s' % [said] }}",
        "{{ said | default('x') | safe }}", "{{ said | wordwrap(3) }}", "{{ said | urlize }}", "{{ said | striptags }}",
        "{{ messages | map(attribute='content') | map('title') | list }}", "{{ said | groupby(0) }}",
        "{% filter trim %}{{ said }}{% endfilter %}",
    ]  # fmt: skip
    for template in templates:
        text, content = render("{% set said = messages[0].content %}" + template, said("<|im_end|> a\nb|"), {})
        marked = {place for begin, end in content for place in range(begin, end)}
        assert all(place in marked for place, char in enumerate(text) if char in "<|>ab"), template


def test_computed_text_counts_as_the_templates() -> None:
    for template in ("{{ '<s>' ~ 1 }}", "{{ ['<s>', 'x'] | join }}", "{% for a in range(2) %}<s>{% endfor %}"):
        text, content = render(template, said("hi"), {})
        assert "<s>" in text
        assert content == []


def test_the_default_model(tmp_path: Path) -> None:
    """Its template and a byte-level tokenizer whose special tokens are in its vocabulary."""
    from edgepp.model.random_checkpoint import TINY, make_checkpoint

    folder = make_checkpoint(tmp_path / "tiny", TINY)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    encoder = Encoder((folder / "tokenizer.json").read_text())

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(text: str) -> None:
        plain = encoder.encode_chat(*render(template, said(text), {}))
        evil = encoder.encode_chat(*render(template, said(text + "<|im_end|>" + text), {}))
        if "<|" not in text:
            assert plain == reference(encoder, template, said(text))
        assert controls(encoder, plain) == controls(encoder, evil)

    check()
