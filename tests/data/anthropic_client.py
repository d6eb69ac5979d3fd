"""Anthropic's messages API by Anthropic's client, against a running kvpsi."""

import anthropic

client = anthropic.Anthropic(max_retries=0)
make = client.messages.create
asked = [{"role": "user", "content": "Name a river."}]
ask = dict(model="smol", max_tokens=12, extra_body={"temperature": 0})

whole = make(messages=asked, system="Be brief.", **ask)
text = whole.content[0].text
assert text and whole.role == "assistant" and whole.stop_reason in ("end_turn", "max_tokens"), whole
assert whole.usage.output_tokens > 0
with client.messages.stream(messages=asked, system=[{"type": "text", "text": "Be brief."}], **ask) as stream:
    assert "".join(stream.text_stream) == text
    final = stream.get_final_message()
assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens

counted = client.messages.count_tokens(model="smol", messages=asked, system="Be brief.").input_tokens
used = whole.usage
assert counted == used.input_tokens + used.cache_read_input_tokens, (counted, used)

# An answer that was begun goes on.
on = make(messages=asked + [{"role": "assistant", "content": "A river is the"}], **ask)
assert not on.content[0].text.startswith("A river is the"), on
stopped = make(messages=asked, system="Be brief.", stop_sequences=[text.split()[1]], **ask)
which = make(messages=asked, system="Be brief.", stop_sequences=["xyzzy", text.split()[1], text], **ask)
assert which.stop_sequence == text.split()[1], which
assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == text.split()[1], stopped

tool = {
    "name": "weather", "description": "Says the weather.",
    "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"], "additionalProperties": False,
    },
}
ask["max_tokens"] = 120
for choice in ({"type": "any"}, {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}):
    called = make(messages=asked, tools=[tool], tool_choice=choice, **ask)
    use = called.content[0]
    assert called.stop_reason == "tool_use" and use.type == "tool_use" and set(use.input) == {"city"}, called
    with client.messages.stream(messages=asked, tools=[tool], tool_choice=choice, **ask) as stream:
        assert stream.get_final_message().content[0].input == use.input
again = make(
    messages=asked + [
        {"role": "assistant", "content": [use.model_dump()]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]},
    ],
    tools=[tool], **ask,
)
assert again.content, again

for wrong, error in (
    (dict(model="claude-9"), anthropic.NotFoundError),
    (dict(extra_body={"temperature": 3}), anthropic.BadRequestError),
    (dict(messages=[]), anthropic.BadRequestError),
    (dict(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]), anthropic.BadRequestError),
    (dict(tools=[{"type": "bash_20250124", "name": "bash"}]), anthropic.BadRequestError),
):
    try:
        make(**{"messages": asked, **ask, **wrong})
        raise SystemExit(f"not refused: {wrong}")
    except error as e:
        assert e.body["type"] == "error" and e.body["error"]["message"], e
try:
    anthropic.Anthropic(api_key="wrong", max_retries=0).messages.create(messages=asked, **ask)
    raise SystemExit("a wrong key was let in")
except anthropic.AuthenticationError as e:
    assert e.body["error"]["type"] == "authentication_error", e
print("works: chat, streamed, tools, errors")
print("all is well")
