"""Asks the server at sys.argv[1] for JSON of a schema: status, and the choice or what the error says."""
import json
import sys
import urllib.error
import urllib.request


def ask(schema, temperature, seed=1, most=300):
    body = {
        "messages": [{"role": "user", "content": "Write something in JSON."}],
        "temperature": temperature, "max_tokens": most, "seed": seed,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    request = urllib.request.Request(
        sys.argv[1] + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return 200, json.load(answer)["choices"][0]
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)["error"]["message"]
