import numpy as np
import pytest

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.tasks.tabular import (
    TABULAR_CLASSIFICATION,
    TABULAR_REGRESSION,
    RegressionOutput,
    TableOutput,
)
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec

NAMES = ("length", "width")
MATRIX = TaskConfig(
    labels=("no", "yes"),
    signature=Signature((TensorSpec("input", "FP64", (-1, 2)),)),
    options={"feature_names": list(NAMES)},
)
COLUMNS = TaskConfig(
    labels=("no", "yes"),
    signature=Signature(
        (TensorSpec("age", "INT64", (-1,)), TensorSpec("city", "BYTES", (-1, 1))),
    ),
)


def rows(body, config=MATRIX):
    return TABULAR_CLASSIFICATION.from_plain(body, config)


def answer(classes, probabilities=None, many=True):
    found = None if probabilities is None else np.array(probabilities, dtype=np.float32)
    return TableOutput(classes=np.array(classes, dtype=np.int64), probabilities=found, many=many)


@pytest.mark.parametrize(
    "body",
    [
        {"row": [1, 2.5]},
        {"features": [1, 2.5]},
        {"features": {"width": 2.5, "length": 1}},
        {"length": 1, "width": 2.5},
        {"row": {"length": 1, "width": 2.5}},
    ],
)
def test_a_row_may_be_said_in_many_ways(body):
    item = rows(body)
    assert item.tensors["input"].tolist() == [[1.0, 2.5]]
    assert not item.many


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [[1, 2.5], [3, 4]]},
        {"rows": [{"length": 1, "width": 2.5}, [3, 4]]},
        {"input": [[1, 2.5], [3, 4]]},
        {"features": [[1, 2.5], [3, 4]]},
    ],
)
def test_many_rows_are_one_item(body):
    item = rows(body)
    assert item.tensors["input"].tolist() == [[1.0, 2.5], [3.0, 4.0]]
    assert item.many


def test_a_list_of_one_row_is_still_a_list():
    assert rows({"rows": [[1, 2]]}).many


def test_columns_take_their_own_datatypes():
    item = rows({"rows": [{"age": 3, "city": "Köln"}, [4, "北京"]]}, COLUMNS)
    assert item.tensors["age"].tolist() == [3, 4]
    assert item.tensors["age"].dtype == np.int64
    assert item.tensors["city"].tolist() == [["Köln".encode()], ["北京".encode()]]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"row": []},
        {"rows": []},
        {"rows": 3},
        {"rows": [1, 2]},
        {"row": "1,2"},
        {"row": [1]},
        {"row": [1, 2, 3]},
        {"row": [1, "2"]},
        {"row": [1, True]},
        {"row": [1, [2]]},
        {"row": [1, 2], "more": 1},
        {"rows": [[1, 2], [3]]},
        {"rows": [[1, 2], "x"]},
        {"length": 1},
        {"length": 1, "width": 2, "height": 3},
        {"length": 1, "width": {"a": 1}},
    ],
)
def test_rows_that_do_not_fit_are_refused(body):
    with pytest.raises(InvalidInput):
        rows(body)


@pytest.mark.parametrize(
    "body",
    [
        {"row": [1.5, "a"]},
        {"row": [1]},
        {"age": 1},
        {"age": "1", "city": "a"},
        {"rows": [1]},
        {"age": 2**63, "city": "a"},
    ],
)
def test_columns_that_do_not_fit_are_refused(body):
    with pytest.raises(InvalidInput):
        rows(body, COLUMNS)


def test_the_error_lists_the_features():
    with pytest.raises(InvalidInput, match="unknown feature 'height'") as caught:
        rows({"height": 1})
    assert caught.value.hint == "features: length, width"
    with pytest.raises(InvalidInput, match="missing feature 'width'"):
        rows({"length": 1})


def test_a_long_list_of_features_is_cut_in_messages():
    names = [f"f{index}" for index in range(1000)]
    config = TaskConfig(
        signature=Signature((TensorSpec("input", "FP64", (-1, 1000)),)),
        options={"feature_names": names},
    )
    with pytest.raises(InvalidInput) as caught:
        rows({"f0": 1}, config)
    assert len(caught.value.text) < 200


def test_a_model_without_feature_names_asks_for_a_row():
    config = TaskConfig(signature=Signature((TensorSpec("input", "FP64", (-1, 2)),)))
    with pytest.raises(InvalidInput) as caught:
        rows({"a": 1, "b": 2}, config)
    assert "row" in caught.value.hint


def test_tensors_are_checked_against_the_signature():
    (item,) = TABULAR_CLASSIFICATION.from_tensors({"input": np.zeros((3, 2))}, MATRIX)
    assert item.many
    for wrong in (np.zeros((3, 3)), np.zeros((3, 2), dtype=np.float32), np.zeros(2)):
        with pytest.raises(InvalidInput):
            TABULAR_CLASSIFICATION.from_tensors({"input": wrong}, MATRIX)


def test_columns_of_unequal_length_are_refused():
    cities = np.array([[b"a"]], dtype=object)
    with pytest.raises(InvalidInput, match="different numbers of rows"):
        TABULAR_CLASSIFICATION.from_tensors(
            {"age": np.zeros(2, dtype=int), "city": cities}, COLUMNS
        )


def test_the_answer_has_exactly_the_declared_outputs():
    declared = (TensorSpec("class", "INT64", (-1,)), TensorSpec("label", "BYTES", (-1,)))
    config = TaskConfig(labels=("no", "yes"), signature=Signature((), declared))
    found = TABULAR_CLASSIFICATION.to_tensors([answer([1, 0]), answer([1])], config)
    assert list(found) == ["class", "label"]
    assert found["class"].tolist() == [1, 0, 1]
    assert found["label"].tolist() == [b"yes", b"no", b"yes"]


def test_by_default_label_and_probabilities_are_declared_and_given():
    signature = TABULAR_CLASSIFICATION.signature(MATRIX)
    assert [spec.shape for spec in signature.outputs] == [(-1,), (-1, 2)]
    found = TABULAR_CLASSIFICATION.to_tensors([answer([0], [[0.75, 0.25]])], MATRIX)
    assert list(found) == [spec.name for spec in signature.outputs]
    assert found["probabilities"].dtype == np.float32


def test_probabilities_that_are_declared_but_missing_are_the_models_fault():
    declared = Signature((), (TensorSpec("probabilities", "FP32", (-1, 2)),))
    with pytest.raises(ModelFailed):
        TABULAR_CLASSIFICATION.to_tensors([answer([0])], TaskConfig(signature=declared))


def test_of_a_model_that_declares_nothing_the_class_has_the_whole_probability():
    found = TABULAR_CLASSIFICATION.to_tensors([answer([1, 0])], MATRIX)
    assert found["probabilities"].tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_one_row_is_answered_by_one_object():
    found = TABULAR_CLASSIFICATION.to_plain(answer([1], [[0.25, 0.75]], many=False), MATRIX)
    assert found == {
        "prediction": "yes",
        "label": "yes",
        "confidence": 0.75,
        "probabilities": {"no": 0.25, "yes": 0.75},
    }


def test_many_rows_are_answered_by_a_list():
    found = TABULAR_CLASSIFICATION.to_plain(answer([1, 0]), MATRIX)
    assert found == {
        "predictions": [{"prediction": "yes", "label": "yes"}, {"prediction": "no", "label": "no"}]
    }


def test_classes_without_labels_are_numbers():
    found = TABULAR_CLASSIFICATION.to_plain(answer([3], many=False), TaskConfig())
    assert found["label"] == "3"


def test_numbers_are_answered_under_the_declared_name():
    declared = Signature((), (TensorSpec("price", "FP32", (-1, 1)),))
    output = RegressionOutput(values=np.array([1.5, 2.5]))
    found = TABULAR_REGRESSION.to_tensors([output], TaskConfig(signature=declared))
    assert found["price"].dtype == np.float32
    assert found["price"].tolist() == [[1.5], [2.5]]
    plain = TABULAR_REGRESSION.to_tensors([output], TaskConfig())
    assert plain["prediction"].tolist() == [1.5, 2.5]


def test_a_number_in_plain_json():
    one = RegressionOutput(values=np.array([1.5]), many=False)
    many = RegressionOutput(values=np.array([[1.5, 2.0]]))
    assert TABULAR_REGRESSION.to_plain(one, TaskConfig()) == {"prediction": 1.5}
    assert TABULAR_REGRESSION.to_plain(many, TaskConfig()) == {
        "predictions": [{"prediction": [1.5, 2.0]}]
    }
