"""Streams one long answer by OpenAI's client and prints its usage as JSON."""

import json
import sys

import openai

story = sys.stdin.read()
stream = openai.OpenAI(max_retries=0).chat.completions.create(
    model="smol",
    messages=[{"role": "user", "content": story + "\n\nTell me about it at length."}],
    max_tokens=500,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"ignore_eos": True},
)
text, usage, finish = "", None, None
for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
assert finish == "length" and len(text) > 500, (finish, text)
print(json.dumps(usage.model_dump()))
