"""OpenAI's responses API by OpenAI's client, against a running kvpsi."""

import json

import openai

client = openai.OpenAI(max_retries=0)
make = client.responses.create
ask = dict(model="smol", temperature=0, max_output_tokens=16)

whole = make(input="Name a river.", instructions="Be brief.", **ask)
assert whole.output_text and whole.status in ("completed", "incomplete"), whole
assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
assert whole.instructions == "Be brief." and not whole.store
if whole.status == "incomplete":
    assert whole.incomplete_details.reason == "max_output_tokens"

events = list(make(input=[{"role": "user", "content": [{"type": "input_text", "text": "Name a river."}]}],
                   instructions="Be brief.", stream=True, store=True, **ask))
assert [e.sequence_number for e in events] == list(range(len(events)))
assert events[0].type == "response.created" and events[-1].type == f"response.{whole.status}", events[-1]
assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
assert events[-1].response.output_text == whole.output_text
tool = {
    "type": "function", "name": "weather", "description": "Says the weather.", "strict": True,
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"], "additionalProperties": False,
    },
}
ask["max_output_tokens"] = 120
for choice in ("required", {"type": "function", "name": "weather"}):
    called = make(input="Weather in Oslo?", tools=[tool], tool_choice=choice, parallel_tool_calls=False, **ask)
    call = called.output[0]
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"city"}, called
    events = list(make(input="Weather in Oslo?", tools=[tool], tool_choice=choice, parallel_tool_calls=False, stream=True, **ask))
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [e.arguments for e in done] == [call.arguments], (events, call)
# Where it may call and does not, the text comes token by token.
free = dict(model="smol", temperature=0, max_output_tokens=40, input="Tell me about rivers.", tools=[tool], tool_choice="auto")
events = list(make(stream=True, **free))
deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
assert len(deltas) > 20, deltas
whole = make(**free)
assert "".join(deltas) == whole.output_text == events[-1].response.output_text, (deltas, whole)
again = make(
    input=[{"role": "user", "content": "Weather in Oslo?"}, call.model_dump(exclude_none=True),
           {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
    tools=[tool], **ask,
)
assert again.output, again

schema = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "km": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "required": ["name", "km"], "additionalProperties": False,
}
form = {"format": {"type": "json_schema", "name": "river", "schema": schema, "strict": True}}
value = json.loads(make(input="Describe a river.", text=form, **ask).output_text)
assert set(value) == {"name", "km"}, value
with client.responses.stream(input="Describe a river.", text=form, **ask) as stream:
    for event in stream:
        pass
    assert json.loads(stream.get_final_response().output_text) == value

for wrong, name in (
    (dict(input="x", previous_response_id="resp_1"), "previous_response_id"),
    (dict(input="x", background=True), "background"),
    (dict(input=[{"type": "item_reference", "id": "x"}]), "input"),
    (dict(input="x", tools=[{"type": "web_search"}]), "tools"),
    (dict(input="x", max_output_tokens=0), "max_output_tokens"),
    (dict(input="x", model="gpt-9"), "gpt-9"),
):
    try:
        make(**{**ask, **wrong})
        raise SystemExit(f"not refused: {wrong}")
    except (openai.BadRequestError, openai.NotFoundError) as e:
        assert name in e.body["message"], (wrong, e)
print("works: responses")
print("all is well")
