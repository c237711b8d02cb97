"""Model responses as JSON, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from agents import ModelResponse, Usage
from agents.items import TResponseOutputItem
from pydantic import BaseModel, TypeAdapter, ValidationError

from durable_core import StepDrift

_ITEM: Final[TypeAdapter[Any]] = TypeAdapter(TResponseOutputItem)
_USAGE: Final = TypeAdapter(Usage)


def to_json(response: ModelResponse) -> dict[str, Any]:
    """Return a response as JSON. Leaves out fields that the provider left out, because the next request sends the items back."""
    plain = {field.name: getattr(response, field.name) for field in fields(response)}
    plain["output"] = [
        item.model_dump(mode="json", exclude_unset=True) if isinstance(item, BaseModel) else item for item in response.output
    ]
    plain["usage"] = _USAGE.dump_python(response.usage, mode="json")
    return plain


def from_json(step_id: str, plain: dict[str, Any]) -> ModelResponse:
    """Return a recorded response. Raises `StepDrift` if the SDK can no longer read it."""
    try:
        output = [_ITEM.validate_python(item) for item in plain["output"]]
        return ModelResponse(**{**plain, "output": output, "usage": _USAGE.validate_python(plain["usage"])})
    except (ValidationError, TypeError, KeyError) as error:
        raise StepDrift(
            f"the model response recorded as {step_id!r} can't be read by this version of openai-agents:"
            f" {str(error).partition(chr(10))[0]}; run it with the version that recorded it"
        ) from error
