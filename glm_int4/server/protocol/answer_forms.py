"""The form that a request wants its answer to have, as OpenAI, vLLM and llama.cpp write it."""

from typing import Any

from glm_int4.errors import InputError
from glm_int4.server.schemas import ChatRequest, CompletionRequest, ResponseFormat, StructuredOutputs

_ANY_OBJECT = {"type": "object"}


def wanted_form(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """Arguments of ``SamplingParams``; empty where any answer will do.

    Raises:
        InputError: several forms, or one that says nothing.
    """
    forms: list[tuple[str, str, Any]] = [
        ("guided_json", "json_schema", request.guided_json),
        ("guided_regex", "regex", request.guided_regex),
        ("guided_choice", "choices", request.guided_choice),
        ("guided_grammar", "grammar", request.guided_grammar),
    ]
    if request.response_format is not None:
        forms.append(("response_format", "json_schema", _openai(request.response_format)))
    if request.structured_outputs is not None:
        forms += [
            (f"structured_outputs.{field}", argument, value)
            for field, argument, value in _vllm(request.structured_outputs)
        ]
    given = [form for form in forms if form[2] is not None]
    if len(given) > 1:
        raise InputError(f"expected one form for an answer, got {' and '.join(name for name, _, _ in given)}")
    return {argument: value for _, argument, value in given}


def _openai(wanted: ResponseFormat) -> Any:
    if wanted.type == "json_object":
        return _ANY_OBJECT if wanted.schema_ is None else wanted.schema_
    if wanted.type == "json_schema":
        schema = wanted.schema_ if wanted.json_schema is None else wanted.json_schema.schema_
        if schema is None:
            raise InputError("expected response_format.json_schema.schema beside the type json_schema, got none")
        return schema
    return None


def _vllm(wanted: StructuredOutputs) -> list[tuple[str, str, Any]]:
    if wanted.structural_tag is not None:
        raise InputError(
            "expected structured_outputs of json, json_object, regex, choice or grammar, got a structural_tag; "
            "write it as a grammar"
        )
    return [
        ("json", "json_schema", wanted.json_),
        ("json_object", "json_schema", _ANY_OBJECT if wanted.json_object else None),
        ("regex", "regex", wanted.regex),
        ("choice", "choices", wanted.choice),
        ("grammar", "grammar", wanted.grammar),
    ]
