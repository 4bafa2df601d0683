"""Four ways to decide whether a generated text is the right answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from builder.evaluate.worker.questions import wrong
from builder.spec.rows import Row
from builder.spec.types import Suite


def reference(suite: Suite, row: Row) -> str:
    """What the check of a suite compares with: the text of the answer, or its calls as JSON.

    Raises DataInvalid.
    """
    message = row["messages"][-1]
    text, calls = message.get("content"), message.get("tool_calls")
    if suite.check == "tool_call" and calls:
        text = "\n".join(json.dumps(_called(suite, call)) for call in calls)
    if not isinstance(text, str):
        raise wrong(suite, f'an answer without text cannot be checked by "{suite.check}"')
    if problem := _problem(suite.check, text):
        raise wrong(suite, f"the answer {_short(text)} {problem}")
    return text


def _called(suite: Suite, call: object) -> dict[str, Any]:
    """The object that a model writes for one of a row's `tool_calls`."""
    made = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        raise wrong(suite, f"a tool call has no name: {_short(json.dumps(call))}")
    arguments = made.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI writes them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise wrong(suite, f"the arguments of a tool call are not JSON: {_short(arguments)}") from None
    return {"name": made["name"], "arguments": arguments}


def _problem(check: str, text: str) -> str | None:
    """Why a text cannot be compared with this answer, or None."""
    try:
        if check == "regex":
            re.compile(text, re.DOTALL)
        elif check == "json":
            json.loads(text)
    except (ValueError, OverflowError, RecursionError, re.error) as error:
        return f"is not {'a regular expression' if check == 'regex' else 'JSON'}: {error}"
    return "has no JSON object" if check == "tool_call" and not objects(text) else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def same_text(text: str, answer: str) -> bool:
    """Whether both texts are equal, apart from white space at both ends."""
    return text.strip() == answer.strip()


def matches(text: str, pattern: str) -> bool:
    """Whether the regular expression matches the whole text, apart from white space at both ends."""
    return re.fullmatch(pattern, text.strip(), re.DOTALL) is not None


def same_json(text: str, answer: str) -> bool:
    """Whether both texts are JSON for equal values. False for a text that is not JSON."""
    try:
        return _same(json.loads(text), json.loads(answer))
    except (ValueError, RecursionError):
        return False


def same_calls(text: str, answer: str) -> bool:
    """Whether both texts hold equal JSON objects in equal order. Text around them does not matter."""
    try:
        return bool(objects(answer)) and _same(objects(text), objects(answer))
    except RecursionError:
        return False


def objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects that stand in a text. Raises RecursionError for absurd nesting."""
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except ValueError:
            at += 1
        at = text.find("{", at)
    return found


def _same(one: object, other: object) -> bool:
    """Whether two JSON values are equal. 1 equals 1.0, but not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": same_text,
    "regex": matches,
    "json": same_json,
    "tool_call": same_calls,
}
