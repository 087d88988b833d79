"""Frameworks for agents over OpenAI's API: pydantic-ai, and OpenAI's own, over chats and over responses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from edgepp.http_api.openai_api.responses import routes as response_routes
from edgepp.http_api.openai_api.routes import routes
from edgepp.http_api.routing import Routing
from tests.builders.loopback_server import serving_app
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer, calling

pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own: sockets left open
HELLO = answer("Hel", "lo")
SUM = answer('{"answer"', ": 4}")


class Sum(BaseModel):
    """The structure that is asked for."""

    answer: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


WEATHER = calling("get_weather", {"city": "Bern"})


@contextmanager
def serving(*scripts: Sequence[Step]) -> Iterator[tuple[str, ScriptedService]]:
    """The base URL of OpenAI's API, which answers the request number i with script i."""
    service = ScriptedService(scripts)
    with serving_app(Routing([*routes(service), *response_routes(service)])) as url:
        yield f"{url}/v1", service


def check_result_was_sent(service: ScriptedService) -> None:
    """Check that the second request had the call of the first answer and its result."""
    assert [tool.name for tool in service.request.tool_use.tools] == ["get_weather"]
    *_, asked, result = service.request.prompt.messages  # type: ignore[union-attr]
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]
    assert result["content"] == "rain in Bern"


class TestPydanticAi:
    @staticmethod
    def agent(url: str, **options: Any) -> Any:
        ai = pytest.importorskip("pydantic_ai")
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        model = OpenAIChatModel(SERVED.name, provider=OpenAIProvider(base_url=url, api_key="any"))
        return ai.Agent(model, **options)

    def test_answers_and_streams(self) -> None:
        async def streamed(agent: Any) -> str:
            async with agent.run_stream("hi") as result:
                return "".join([piece async for piece in result.stream_text(delta=True)])

        with serving(HELLO) as (url, service):
            agent = self.agent(url, system_prompt="be short")
            assert agent.run_sync("hi").output == "Hello"
            assert [one["role"] for one in service.request.prompt.messages] == ["system", "user"]  # type: ignore[union-attr]
            assert asyncio.run(streamed(agent)) == "Hello"

    def test_a_tool_is_called(self) -> None:
        with serving(WEATHER, HELLO) as (url, service):
            result = self.agent(url, tools=[get_weather]).run_sync("the weather in Bern?")
            assert result.output == "Hello"
            assert result.usage.input_tokens == 14
            check_result_was_sent(service)

    def test_structured_output_by_tool_and_by_schema(self) -> None:
        ai = pytest.importorskip("pydantic_ai")
        with serving(calling("final_result", {"answer": 4})) as (url, service):
            assert self.agent(url, output_type=Sum).run_sync("2 + 2").output == Sum(answer=4)
            assert service.request.tool_use.choice == "required"
        with serving(SUM) as (url, service):
            assert self.agent(url, output_type=ai.NativeOutput(Sum)).run_sync("2 + 2").output == Sum(answer=4)
            constraint = service.request.options.constraint
            assert constraint is not None
            assert constraint.kind == "json_schema"


@pytest.mark.parametrize("api", ["chat", "responses"])
class TestOpenaiAgents:
    @staticmethod
    def agent(url: str, api: str, **options: Any) -> Any:
        agents = pytest.importorskip("agents")
        import openai

        agents.set_tracing_disabled(True)
        models = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}
        client = openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0)
        return agents.Agent("one", model=models[api](SERVED.name, client), **options)

    def test_answers_and_streams(self, api: str) -> None:
        async def both(agent: Any) -> tuple[str, str]:
            from agents import Runner

            whole = await Runner.run(agent, "hi")
            result = Runner.run_streamed(agent, "hi")
            raw = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
            pieces = [event.delta for event in raw if event.type == "response.output_text.delta"]
            assert result.final_output == "".join(pieces)
            return whole.final_output, result.final_output

        with serving(HELLO) as (url, _):
            assert asyncio.run(both(self.agent(url, api, instructions="be short"))) == ("Hello", "Hello")

    def test_a_tool_is_called(self, api: str) -> None:
        async def run(agent: Any) -> str:
            from agents import Runner

            return str((await Runner.run(agent, "the weather in Bern?")).final_output)

        with serving(WEATHER, HELLO) as (url, service):
            agents = pytest.importorskip("agents")
            assert asyncio.run(run(self.agent(url, api, tools=[agents.function_tool(get_weather)]))) == "Hello"
            check_result_was_sent(service)

    def test_structured_output_is_held_to_its_schema(self, api: str) -> None:
        async def run(agent: Any) -> Any:
            from agents import Runner

            return (await Runner.run(agent, "2 + 2")).final_output

        with serving(SUM) as (url, service):
            assert asyncio.run(run(self.agent(url, api, output_type=Sum))) == Sum(answer=4)
            constraint = service.request.options.constraint
            assert constraint is not None
            assert constraint.kind == "json_schema"
