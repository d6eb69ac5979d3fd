"""LlamaIndex's way to a server of one's own, against a running kvpsi."""

import os
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="smol", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"], max_retries=0,
    is_chat_model=True, is_function_calling_model=True, context_window=4096, max_tokens=200, temperature=0,
)
asked = [ChatMessage(role="user", content="Name a river.")]
text = llm.chat(asked).message.content
assert text and "".join(p.delta or "" for p in llm.stream_chat(asked)) == text
assert llm.complete("Name a river.").text == text


def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Says the weather."""
    return f"rain in {city}"


called = llm.chat_with_tools([FunctionTool.from_defaults(weather)], "Weather in Oslo?", tool_required=True)
calls = llm.get_tool_calls_from_response(called)
assert calls[0].tool_name == "weather" and calls[0].tool_kwargs["city"] in ("Oslo", "Rome"), calls
result = llm.predict_and_call([FunctionTool.from_defaults(weather)], "Weather in Oslo?", tool_required=True)
assert str(result).startswith("rain in "), result
print("works: chat, streamed, tools")
print("all is well")
