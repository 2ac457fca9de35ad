"""For `schemathesis run` against a server in the interpreter: answers of a token.

SCHEMATHESIS_HOOKS=schemathesis_hooks.py schemathesis run http://localhost:8000/openapi.json ...
"""

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, kwargs: dict) -> None:
    """Whatever was made up, it asks for a token at most, unless its limit is what is wrong."""
    body = case.body
    if isinstance(body, dict) and ("prompt" in body or "messages" in body):
        for name in ("max_tokens", "max_completion_tokens"):
            limit = body.get(name)
            if limit is None or (type(limit) is int and limit > 1):
                body[name] = 1
        if "prompt" in body:
            body.pop("max_completion_tokens")
