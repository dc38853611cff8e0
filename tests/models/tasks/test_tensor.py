import numpy as np
import pytest

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec, type_by_datatype
from wherry.models.tasks.tensor import (
    TENSOR,
    TensorOutput,
    array_from_list,
    array_from_raw,
    check_tensors,
    count_elements,
    count_rows,
    datatype_of,
    has_free_rows,
    join_rows,
    raw_from_array,
    rows_usage,
    split_rows,
    type_of,
)

OPEN = TaskConfig(signature=Signature((TensorSpec("X", "", ()),), (TensorSpec("X", "", ()),)))
PAIR = TaskConfig(
    signature=Signature(
        (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "BYTES", (-1,))),
        (TensorSpec("y", "FP32", (-1,)),),
    )
)


def texts(*values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def pair(rows=2):
    return {"a": np.zeros((rows, 2), dtype=np.float32), "b": texts(*[b"x"] * rows)}


def test_an_open_signature_is_shown_in_a_form_that_clients_can_read():
    assert TENSOR.signature(OPEN).inputs == (TensorSpec("X", "FP32", (-1,)),)
    assert TENSOR.signature(PAIR) == PAIR.signature


def test_a_request_is_one_item_with_all_its_rows():
    (item,) = TENSOR.from_tensors(pair(5), PAIR)
    assert item.tensors["a"].shape == (5, 2)


def test_an_open_input_takes_every_datatype_and_shape():
    for code in type_by_datatype.values():
        array = np.zeros((0, 3, 1), dtype=code)
        assert TENSOR.from_tensors({"X": array}, OPEN)[0].tensors["X"] is array


@pytest.mark.parametrize(
    "change",
    [
        {"a": np.zeros((2, 3), dtype=np.float32)},
        {"a": np.zeros((2,), dtype=np.float32)},
        {"a": np.zeros((2, 2), dtype=np.float64)},
        {"b": np.zeros(2, dtype=np.uint8)},
        {"c": np.zeros(2)},
        {"b": None},
    ],
)
def test_tensors_that_do_not_fit_the_signature_are_refused(change):
    tensors = {name: value for name, value in {**pair(), **change}.items() if value is not None}
    with pytest.raises(InvalidInput):
        check_tensors(tensors, PAIR.signature.inputs)


def test_the_message_names_what_is_wrong_and_what_is_right():
    with pytest.raises(InvalidInput, match=r"'a' is FP64, the model takes FP32"):
        check_tensors({**pair(), "a": np.zeros((2, 2))}, PAIR.signature.inputs)
    with pytest.raises(InvalidInput, match=r"shape \[2, 3\], the model takes \[-1, 2\]"):
        check_tensors({**pair(), "a": np.zeros((2, 3), dtype=np.float32)}, PAIR.signature.inputs)


def test_rows_are_counted_where_the_signature_has_rows():
    assert count_rows(pair(3), PAIR.signature.inputs) == 3
    assert count_rows({"X": np.zeros((7, 7))}, OPEN.signature.inputs) == 1
    assert not has_free_rows(OPEN.signature.inputs)
    assert not has_free_rows((TensorSpec("a", "FP32", (1, 2)),))
    assert not has_free_rows(())


def test_inputs_with_different_numbers_of_rows_are_refused():
    with pytest.raises(InvalidInput, match="different numbers of rows"):
        count_rows({**pair(2), "b": texts(b"x")}, PAIR.signature.inputs)


def test_an_empty_request_costs_a_row():
    assert rows_usage(0).rows == 1
    assert rows_usage(4).rows == 4


def test_splitting_undoes_joining():
    parts = [pair(2), pair(0), pair(3)]
    parts[2]["a"] += 1
    again = split_rows(join_rows(parts), [2, 0, 3])
    for part, found in zip(parts, again, strict=True):
        assert np.array_equal(part["a"], found["a"])
        assert part["b"].tolist() == found["b"].tolist()


def test_the_product_of_a_shape_cannot_overflow():
    assert count_elements("X", [2, 3]) == 6
    assert count_elements("X", []) == 1
    for shape in ([2**32, 2**32], [2**63, 2], [0, 2**62], [-1], [1] * 33):
        with pytest.raises(InvalidInput):
            count_elements("X", shape)


def test_plain_values_take_the_declared_datatype():
    item = TENSOR.from_plain({"a": [[1, 2.5]], "b": ["é"]}, PAIR)
    assert item.tensors["a"].dtype == np.float32
    assert item.tensors["b"].tolist() == ["é".encode()]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"a": [[1, 2]]},
        {"a": [[1, 2]], "b": ["x"], "c": 1},
        {"a": [[1, 2], [3]], "b": ["x", "y"]},
        {"a": [1, 2], "b": ["x"]},
        {"a": [[True, False]], "b": ["x"]},
        {"a": [["1", "2"]], "b": ["x"]},
        {"a": [[1e39, 1]], "b": ["x"]},
        {"a": {"x": 1}, "b": ["x"]},
        {"a": None, "b": ["x"]},
    ],
)
def test_plain_values_that_do_not_fit_are_refused(body):
    with pytest.raises(InvalidInput):
        TENSOR.from_plain(body, PAIR)


def test_mixed_plain_values_of_an_open_input_are_refused():
    for value in ([1, "a"], [None], [{"a": 1}], [[1], 2], [2**70]):
        with pytest.raises(InvalidInput):
            TENSOR.from_plain({"X": value}, OPEN)


def test_integers_and_fractions_together_are_fractions():
    assert TENSOR.from_plain({"X": [1, 2.5]}, OPEN).tensors["X"].dtype == np.float64


def test_output_tensors_are_shown_as_lists():
    output = TensorOutput(tensors={"n": np.array([[1, 2]]), "t": texts(b"a", "b")})
    assert TENSOR.to_plain(output, OPEN) == {"n": [[1, 2]], "t": ["a", "b"]}


def test_bytes_that_are_no_text_cannot_be_shown():
    with pytest.raises(InvalidInput, match="not text"):
        TENSOR.to_plain(TensorOutput(tensors={"t": texts(b"\xff")}), OPEN)


def test_datatypes_have_two_names():
    for datatype, code in type_by_datatype.items():
        assert datatype_of(np.zeros(1, dtype=code)) == datatype
        assert type_of(datatype) == np.dtype(code)
    assert datatype_of(texts(b"")) == "BYTES"
    assert datatype_of(np.array(["a"])) == "BYTES"
    assert datatype_of(np.zeros(1, dtype=">i4")) == "INT32"
    with pytest.raises(ModelFailed, match="complex128"):
        datatype_of(np.zeros(1, dtype=complex))


def test_raw_bytes_are_little_endian():
    array = np.array([1, 258], dtype=">u2")
    assert raw_from_array(array) == b"\1\0\2\1"
    again = array_from_raw("X", memoryview(b"\1\0\2\1"), "UINT16", [2])
    assert again.tolist() == [1, 258]
    assert raw_from_array(np.arange(6, dtype=np.uint8).reshape(2, 3).T) == b"\0\3\1\4\2\5"


def test_raw_bytes_are_used_where_they_are_if_numbers_may_be_there():
    memory = bytearray(64)
    memory[:16] = np.array([1.0, 2.0]).tobytes()
    array = array_from_raw("X", memoryview(memory)[:16], "FP64", [2])
    assert np.shares_memory(array, np.frombuffer(memory, dtype=np.uint8))
    array *= 2  # a model may write into what it is given
    assert np.frombuffer(memory[:16]).tolist() == [2.0, 4.0]
    odd = array_from_raw("X", memoryview(memory)[1:17], "FP64", [2])
    assert odd.flags.aligned
    assert not np.shares_memory(odd, np.frombuffer(memory, dtype=np.uint8))
    fixed = array_from_raw("X", memoryview(bytes(memory))[:16], "FP64", [2])
    assert fixed.flags.writeable


def test_what_is_neither_text_nor_bytes_is_no_bytes_tensor():
    with pytest.raises(ModelFailed):
        raw_from_array(texts(1.5))


def test_lists_fill_their_shape():
    assert array_from_list("X", [1, 2, 3, 4], "INT8", [2, 2]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InvalidInput):
        array_from_list("X", [1, 2, 3], "INT8", [2, 2])
