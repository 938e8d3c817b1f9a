"""JSON Schemas that a spec holds as text (draft 2020-12)."""

import json
from collections.abc import Callable
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

_NESTING: Final = "nesting"


def schema_check(schema: str, field: str) -> Callable[[Any], str]:
    """A function that says which rule of the schema a value breaks, if any; ``nesting``, if it is nested too deep to be
    looked at. Raises StageError (SpecInvalid), which names the ``field`` of the spec.

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
        except RecursionError:
            return _NESTING
        return "/".join(map(str, broken.absolute_schema_path)) if broken else ""

    if problem_of(None) == _NESTING:
        raise _wrong(field, "refers to itself without an end")
    return problem_of


def _require_references(schema: Any, field: str) -> None:
    """All at once, and before a value needs them."""
    import referencing
    import referencing.exceptions
    from referencing.jsonschema import DRAFT202012

    whole = DRAFT202012.create_resource(schema)
    pending, seen = [(whole, referencing.Registry().resolver_with_root(whole))], set[int]()
    while pending:
        part, resolver = pending.pop()
        if id(part.contents) in seen:
            continue
        seen.add(id(part.contents))
        pending += [(each, resolver.in_subresource(each)) for each in part.subresources()]
        ref = part.contents.get("$ref") if isinstance(part.contents, dict) else None
        if isinstance(ref, str):
            try:
                found = resolver.lookup(ref)
            except referencing.exceptions.Unresolvable:
                raise _wrong(field, f"refers to {ref!r}, which it does not define") from None
            pending.append((DRAFT202012.create_resource(found.contents), found.resolver))


def _wrong(field: str, problem: str) -> StageError:
    return StageError(Reason.SPEC_INVALID, f"{field} {problem}.")
