"""litellm's ways to a server of one's own, against a running kvpsi."""

import json
import os

import litellm

litellm.suppress_debug_info = True
base = os.environ["ANTHROPIC_BASE_URL"]
asked = [{"role": "user", "content": "Name a river."}]
weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
    },
}
for model, at in (
    ("openai/smol", f"{base}/v1"),
    ("hosted_vllm/smol", f"{base}/v1"),
    ("anthropic/smol", base),
    ("ollama_chat/smol", base),
    ("ollama/smol", base),
):
    ask = dict(model=model, api_base=at, api_key=os.environ["OPENAI_API_KEY"], temperature=0, num_retries=0)
    whole = litellm.completion(messages=asked, max_tokens=12, **ask).choices[0]
    pieces = litellm.completion(messages=asked, max_tokens=12, stream=True, **ask)
    text = "".join(c.choices[0].delta.content or "" for c in pieces)
    assert whole.message.content and text == whole.message.content, (model, text, whole)
    if model.startswith("ollama"):
        continue
    called = litellm.completion(
        messages=asked, max_tokens=150, tools=[weather], tool_choice="required", parallel_tool_calls=False, **ask
    ).choices[0]
    arguments = json.loads(called.message.tool_calls[0].function.arguments)
    assert called.finish_reason == "tool_calls" and arguments["city"] in ("Oslo", "Rome"), (model, called)
print("works: chat, streamed, tools")
print("all is well")
