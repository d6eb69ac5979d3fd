"""What programs do with LangChain, against a running kvpsi."""

import os
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

common = dict(base_url=os.environ["OPENAI_BASE_URL"], model="smol", temperature=0, max_retries=0)
llm = ChatOpenAI(**common, max_tokens=500)
text = llm.invoke("Name a river.").content
assert text and "".join(c.content for c in llm.stream("Name a river.")) == text


@tool
def weather(city: Literal["Oslo", "Rome"], days: int = 1) -> str:
    """Says the weather."""
    return f"rain in {city}"


bound = llm.bind_tools([weather], tool_choice="any")
message = bound.invoke("Weather in Oslo?")
assert message.tool_calls and message.response_metadata["finish_reason"] == "tool_calls", message
results = [ToolMessage(weather.invoke(c["args"]), tool_call_id=c["id"]) for c in message.tool_calls]
again = llm.bind_tools([weather]).invoke([HumanMessage("Weather in Oslo?"), message, *results])
assert again.content or again.tool_calls, again
streamed = None
for chunk in bound.stream("Weather in Oslo?"):
    streamed = chunk if streamed is None else streamed + chunk
assert [c["args"] for c in streamed.tool_calls] == [c["args"] for c in message.tool_calls], streamed
named = llm.bind_tools([weather], tool_choice="weather").invoke("Hello.")
assert named.tool_calls[0]["name"] == "weather", named


class River(BaseModel):
    name: str = Field(max_length=12)
    km: int = Field(ge=0, le=9999)


for method in ("json_schema", "function_calling"):
    river = llm.with_structured_output(River, method=method).invoke("Describe a river.")
    assert isinstance(river, River), (method, river)
# Its keys are not enforced by this method: any JSON object is.
loose = llm.with_structured_output(None, method="json_mode").invoke("Describe a river in JSON: {")
assert isinstance(loose, dict), loose

responses = ChatOpenAI(**common, use_responses_api=True, max_tokens=500)
assert responses.invoke("Name a river.").text
called = responses.bind_tools([weather], tool_choice="any").invoke("Weather in Oslo?")
assert called.tool_calls[0]["name"] == "weather", called
assert isinstance(responses.with_structured_output(River).invoke("Describe a river."), River)
print("works: chat, streamed, tools, schemas, responses")
print("all is well")
