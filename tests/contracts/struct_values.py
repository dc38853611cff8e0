"""Random values of any struct that a task may have, made from its type alone."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec import inspect

from wherry.models.tasks.task import type_by_datatype

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from(sorted(type_by_datatype.values())).flatmap(
    lambda code: hnp.arrays(np.dtype(code), SHAPES)
)
OBJECTS = st.lists(st.binary(max_size=5) | st.text(max_size=5) | st.none(), max_size=4).map(
    lambda each: np.array([*each, None], dtype=object)[:-1]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FEW = 3


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type."""
    return _values(inspect.type_info(kind))


def _values(kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StructType():
            fields = {field.name: _values(field.type) for field in kind.fields}
            return st.builds(kind.cls, **fields)
        case inspect.UnionType():
            return st.one_of([_values(each) for each in kind.types])
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.ListType() | inspect.VarTupleType():
            least = kind.min_length or 0
            found = st.lists(_values(kind.item_type), min_size=least, max_size=least + FEW)
            return found.map(tuple) if isinstance(kind, inspect.VarTupleType) else found
        case inspect.TupleType():
            return st.tuples(*map(_values, kind.item_types))
        case inspect.DictType():
            return st.dictionaries(_values(kind.key_type), _values(kind.value_type), max_size=FEW)
        case inspect.StrType():
            found = st.from_regex(kind.pattern, fullmatch=True) if kind.pattern else st.text()
            return found.filter(lambda each: _fits(each, kind))
        case inspect.BytesType():
            return st.binary(max_size=20)
        case inspect.IntType():
            least = -(2**63) if kind.ge is None else kind.ge
            return st.integers(least, 2**63 - 1 if kind.le is None else kind.le)
        case inspect.FloatType():
            return st.floats(
                kind.ge if kind.gt is None else kind.gt,
                kind.le if kind.lt is None else kind.lt,
                exclude_min=kind.gt is not None,
                exclude_max=kind.lt is not None,
                allow_nan=False,
            )
        case inspect.CustomType():
            return NUMBERS | OBJECTS
        case inspect.AnyType():
            return JSON
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case _:
            raise AssertionError(f"teach this file {kind!r}")


def _fits(text: str, kind: inspect.StrType) -> bool:
    return (kind.min_length or 0) <= len(text) <= (kind.max_length or len(text))


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values are of the same types and hold the same."""
    if isinstance(one, np.ndarray):
        same_kind = isinstance(other, np.ndarray) and one.dtype == other.dtype
        return same_kind and one.shape == other.shape and _same_elements(one, other)
    if isinstance(one, msgspec.Struct):
        names = one.__struct_fields__
        return type(one) is type(other) and all(
            are_equal(getattr(one, name), getattr(other, name)) for name in names
        )
    if isinstance(one, (list, tuple)):
        return (
            type(one) is type(other) and len(one) == len(other) and all(map(are_equal, one, other))
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def _same_elements(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == object:
        return one.tolist() == other.tolist()
    return one.tobytes() == other.tobytes()
