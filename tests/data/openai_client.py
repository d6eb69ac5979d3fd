"""What programs do with OpenAI's client, against a running kvpsi."""

import asyncio

import openai

client = openai.OpenAI(max_retries=0)
asked = [{"role": "user", "content": "Name a river."}]

assert [m.id for m in client.models.list()] == ["smol"]

answer = client.chat.completions.create(model="smol", messages=asked, max_tokens=12, temperature=0)
text = answer.choices[0].message.content
assert text and answer.choices[0].finish_reason in ("stop", "length"), answer
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
assert answer.usage.model_extra["kvpsi"]["trims"] == 0, answer.usage

pieces = list(
    client.chat.completions.create(
        model="smol",
        messages=asked,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
)
assert "".join(c.choices[0].delta.content or "" for c in pieces if c.choices) == text
assert pieces[-1].usage.completion_tokens == answer.usage.completion_tokens
assert pieces[-1].usage.prompt_tokens_details.cached_tokens >= 0

helper = ""
with client.chat.completions.stream(
    model="smol", messages=asked, max_tokens=12, temperature=0
) as stream:
    for event in stream:
        if event.type == "content.delta":
            helper += event.delta
assert helper == text, (helper, text)

chances = client.chat.completions.create(
    model="smol", messages=asked, max_tokens=4, logprobs=True, top_logprobs=3
).choices[0].logprobs.content
assert len(chances) <= 4 and all(len(c.top_logprobs) == 3 for c in chances)

done = client.completions.create(model="smol", prompt="One, two,", max_tokens=4, temperature=0)
assert done.choices[0].text and done.usage.completion_tokens == 4, done

for wrong, error in (
    (dict(model="gpt-9", messages=asked), openai.NotFoundError),
    (dict(model="smol", messages=asked, temperature=9), openai.BadRequestError),
    (dict(model="smol", messages=asked, n=1000), openai.BadRequestError),
    (dict(model="smol", messages=[]), openai.BadRequestError),
):
    try:
        client.chat.completions.create(**wrong)
        raise SystemExit(f"not refused: {wrong}")
    except error as e:
        assert e.body["message"], e
try:
    openai.OpenAI(api_key="wrong", max_retries=0).models.list()
    raise SystemExit("a wrong key was let in")
except openai.AuthenticationError:
    pass


async def together():
    """As many at once as have places, and one that is left in the middle."""
    many = openai.AsyncOpenAI(max_retries=0)
    answers = await asyncio.gather(
        *(
            many.chat.completions.create(model="smol", messages=asked, max_tokens=12, temperature=0)
            for _ in range(4)
        )
    )
    assert all(a.choices[0].message.content for a in answers)
    stream = await many.chat.completions.create(
        model="smol", messages=asked, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    await many.close()


asyncio.run(together())
embedded = client.embeddings.create(model="smol", input=["a river", "a stream"])
assert len(embedded.data) == 2 and abs(sum(x * x for x in embedded.data[1].embedding) - 1) < 1e-3

print("works: chat, streamed, embeddings, errors")
print("all is well")
