"""JSON Schemas that a spec holds as text (draft 2020-12)."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError


def schema_check(schema: str, field: str) -> Callable[[Any], str]:
    """A function that says which rule of the schema a value breaks, if any. Raises StageError (SpecInvalid), which
    names the ``field`` of the spec.

    References are only followed within the schema: nothing is ever loaded from elsewhere.
    """
    import jsonschema
    import referencing.exceptions

    try:
        parsed = json.loads(schema)
        jsonschema.Draft202012Validator.check_schema(parsed)
    except (ValueError, RecursionError) as error:
        raise _wrong(field, f"is not JSON: {str(error)[:80]}") from None
    except jsonschema.SchemaError as error:
        raise _wrong(field, f"is not a JSON Schema: {error.json_path}: {error.message[:200]}") from None
    _require_references(parsed, field)
    validator = jsonschema.Draft202012Validator(parsed, registry=referencing.Registry())

    def problem_of(value: Any) -> str:
        try:
            broken = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except referencing.exceptions.Unresolvable as error:
            raise _wrong(field, f"refers to {error.ref!r}, which it does not define") from None
        return "/".join(map(str, broken.absolute_schema_path)) if broken else ""

    return problem_of


def _require_references(schema: Any, field: str) -> None:
    """All at once, and before a value needs them. Within parts with an address of their own they are left to that."""
    import referencing
    import referencing.exceptions
    import referencing.jsonschema

    found = list(_objects(schema))
    if any("$id" in each for each in found):
        return
    resource = referencing.jsonschema.DRAFT202012.create_resource(schema)
    resolver = referencing.Registry().with_resource("", resource).resolver()
    for ref in (each["$ref"] for each in found if isinstance(each.get("$ref"), str)):
        try:
            resolver.lookup(ref)
        except referencing.exceptions.Unresolvable:
            raise _wrong(field, f"refers to {ref!r}, which it does not define") from None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _wrong(field: str, problem: str) -> StageError:
    return StageError(Reason.SPEC_INVALID, f"{field} {problem}.")
