"""Histories of agents, rendered by chat templates that allow less than agents send."""

import json

import pytest

from edgepp.model.text.chat_template import TemplateRefusal, render
from edgepp.model.text.conversation import Conversation
from edgepp.tool_calls.formats import ToolFormat, format_of
from edgepp.tool_calls.tool_use import ToolUse
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answers import NOW, WEATHER

TEMPLATES = [t.LLAMA, t.QWEN, t.MISTRAL, t.GEMMA_2, t.PLAIN, t.THINKING]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
USE = ToolUse((WEATHER, NOW))


@pytest.fixture(params=["by its text", "by trial"], autouse=True)
def _limits_known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template refuses is found in both ways."""
    if request.param == "by trial":
        monkeypatch.setitem(globals(), "form", tried_form)


def form(template: str) -> ToolFormat:
    return format_of(template)


def tried_form(template: str) -> ToolFormat:
    def tried(conversation: Conversation) -> str | None:
        try:
            return render(template, conversation, VARIABLES)[0]
        except TemplateRefusal:
            return None

    return format_of(template, render=tried)


def rendered(template: str, messages, use: ToolUse = USE) -> str:
    return render(template, form(template).prepare(Conversation(messages), use), VARIABLES)[0]


def made_call(name: str, arguments, call_id: str = "") -> dict:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


PARALLEL = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather and time?"},
    {
        "role": "assistant",
        "content": "I look both up.",
        "tool_calls": [made_call("get_weather", '{"city": "Paris"}', "a"), made_call("now", "", "b")],
    },
    {"role": "tool", "tool_call_id": "b", "content": "NOON"},
    {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "RAIN"}]},
    {"role": "user", "content": "Thanks."},
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_history_with_parallel_calls_is_rendered_by_every_template(template) -> None:
    text = rendered(template, PARALLEL)
    for expected in ("Weather and time?", "Paris", "NOON", "RAIN", "Thanks."):
        assert expected in text, template
    assert '\\"city' not in text


def test_parallel_calls_become_pairs_of_call_and_result_where_a_template_takes_one_at_a_time() -> None:
    text = rendered(t.LLAMA, PARALLEL)
    places = [text.index(one) for one in ("I look both up.", '"Paris"', "RAIN", '{"name": "now"', "NOON", "Thanks.")]
    assert places == sorted(places)


def test_parallel_calls_stay_together_where_a_template_takes_them() -> None:
    messages = form(t.QWEN).prepare(Conversation(PARALLEL), USE).messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert messages[3]["name"] == "now"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "S"}],
        [{"role": "user", "content": "U"}, {"role": "tool", "tool_call_id": "lost", "content": "RESULT"}],
        [{"role": "tool", "content": "RESULT"}],
        [{"role": "assistant", "content": "A"}, {"role": "user", "content": "U"}],
        [{"role": "user", "content": "U"}, {"role": "user", "content": "V"}, {"role": "assistant", "content": None}],
        [
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": None, "tool_calls": [made_call("now", "not json", "x")]},
        ],
        [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A", "tool_calls": []}],
        [
            {"role": "user", "content": "U"},
            {"role": "assistant", "tool_calls": [made_call("now", {}), made_call("get_weather", None)]},
            {"role": "tool", "name": "get_weather", "content": "RESULT"},
            {"role": "function", "name": "now", "content": "R"},
        ],
    ],
)
@pytest.mark.parametrize("use", [USE, ToolUse(), ToolUse((WEATHER,), "none")])
def test_odd_conversations_are_rendered_whole(template, messages, use) -> None:
    text = rendered(template, messages, use)
    for message in messages:
        assert str(message.get("content") or "") in text


@pytest.mark.parametrize("template", [t.LLAMA, t.QWEN, t.MISTRAL, t.GEMMA_2, t.PLAIN])
def test_later_notes_of_system_and_developer_stay_where_they_are(template) -> None:
    messages = [
        {"role": "system", "content": "FIRST"},
        {"role": "developer", "content": "SECOND"},
        {"role": "user", "content": "QUESTION"},
        {"role": "assistant", "content": "ANSWER"},
        {"role": "system", "content": "LATER"},
        {"role": "user", "content": "FOLLOWING"},
    ]
    text = rendered(template, messages, ToolUse())
    places = [text.index(one["content"]) for one in messages]
    assert places == sorted(places)


@pytest.mark.parametrize("template", [t.LLAMA, t.QWEN, t.MISTRAL, t.GEMMA_2, t.PLAIN])
def test_a_longer_conversation_begins_as_the_shorter_one(template) -> None:
    """What the prefix cache needs: a note or a turn more changes nothing in front of it."""
    notes = [*PARALLEL, {"role": "assistant", "content": "Yes."}, {"role": "system", "content": "NOTE"}]
    if template is t.MISTRAL:  # renders its tools in front of the last user message
        short, long = rendered(template, PARALLEL, ToolUse()), rendered(template, notes, ToolUse())
    else:
        short, long = rendered(template, PARALLEL), rendered(template, notes)
    stem = short[: short.index("Thanks.")]
    assert long.startswith(stem)


def test_a_note_behind_a_result_does_not_move_tools_that_stand_at_the_newest_question() -> None:
    called, result = PARALLEL[2], PARALLEL[3]
    short = [*PARALLEL[:2], {**called, "tool_calls": called["tool_calls"][1:]}, result]
    prepared = form(t.MISTRAL).prepare(Conversation([*short, {"role": "system", "content": "NOTE"}]), USE).messages
    assert [message["role"] for message in prepared][-1] == "tool"
    assert prepared[-1]["content"] == "NOON\n\n[System note]\nNOTE"
    before = rendered(t.MISTRAL, short[:-1])
    assert rendered(t.MISTRAL, [*short, {"role": "system", "content": "NOTE"}]).startswith(before)


def test_a_template_that_refuses_a_late_system_message_gets_a_note_of_the_user() -> None:
    messages = [{"role": "user", "content": "U"}, {"role": "system", "content": "NOTE"}]
    prepared = form(t.QWEN).prepare(Conversation(messages), ToolUse()).messages
    assert prepared[1] == {"role": "user", "content": "[System note]\nNOTE"}
    kept = form(t.LLAMA).prepare(Conversation(messages), ToolUse()).messages
    assert kept[1] == {"role": "system", "content": "NOTE"}


def test_a_template_without_tools_gets_a_prompt_with_their_schemas() -> None:
    text = rendered(t.PLAIN, PARALLEL)
    assert text.count("<|im_start|>system") == 1
    assert json.dumps(WEATHER.parameters) in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>' in text
    assert "<tool_response>\nNOON\n</tool_response>\n<tool_response>\nRAIN\n</tool_response>" in text


def test_with_choice_none_no_tools_are_rendered() -> None:
    for template in TEMPLATES:
        assert "get_weather" not in rendered(
            template, [{"role": "user", "content": "U"}], ToolUse((WEATHER,), choice="none")
        )


def test_mistral_gets_ids_of_nine_letters_that_fit_together() -> None:
    messages = form(t.MISTRAL).prepare(Conversation(PARALLEL), USE).messages
    ids = [call["id"] for call in messages[2]["tool_calls"]]
    assert {len(one) for one in ids} == {9}
    assert [message["tool_call_id"] for message in messages[3:5]] == ids[::-1]


def test_a_template_that_renders_only_ids_gets_the_names_in_them() -> None:
    template = (
        "{{ tools | tojson }}<|tool_calls_section_begin|>{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.id }} {{ call.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    text = render(template, tried_form(template).prepare(Conversation(PARALLEL), USE), VARIABLES)[0]
    assert "functions.get_weather:0" in text
    assert "functions.now:1" in text


def test_a_template_that_drops_calls_gets_them_as_text() -> None:
    template = t.PLAIN.replace("{% for message", "{{ tools | tojson if tools }}<tool_call>{% for message", 1)
    text = render(template, tried_form(template).prepare(Conversation(PARALLEL), USE), VARIABLES)[0]
    assert '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>' in text


def test_a_template_that_shows_tools_and_no_calls_gets_them_as_its_model_writes_them() -> None:
    if form is not tried_form:
        return  # the text says that it knows no calls, and not that it shows results
    text = rendered(t.GRANITE_TEXT, PARALLEL)
    assert '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now"' in text
    assert "<|start_of_role|>tool<|end_of_role|>RAIN" in text


def test_text_beside_calls_that_a_template_drops_stands_in_front_of_them() -> None:
    if form is not tried_form:
        return
    text = rendered(t.HERMES_TOOLS, PARALLEL)
    assert text.index("I look both up.") < text.index('<tool_call>\n{"name": "get_weather"')


def test_where_tools_move_with_the_newest_question_earlier_turns_stay_as_they_are() -> None:
    """The stages keep what two prompts begin with: with Mistral's template all turns but the last."""

    def turns(number: int) -> list[dict[str, str]]:
        roles = ("user", "question"), ("assistant", "answer")
        return [{"role": role, "content": f"{what} {n}"} for n in range(number) for role, what in roles]

    for earlier in range(1, 4):
        before = rendered(t.MISTRAL, turns(earlier)[:-1])
        after = rendered(t.MISTRAL, turns(earlier + 1)[:-1])
        shared = before[: before.index("[AVAILABLE_TOOLS]")]
        assert after.startswith(shared)
        assert all(f"answer {n}" in shared for n in range(earlier - 1))
