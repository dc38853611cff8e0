import json

import msgspec
import pytest

pytest.importorskip("skops")

from wherry.errors import Cancelled, InvalidInput
from wherry.learning.recipes.catalog import BUILT_IN, find_recipe, recipe_names
from wherry.learning.recipes.iris import IRIS, IrisParameters
from wherry.learning.recipes.recipe import read_parameters
from wherry.models.bundle import open_bundle
from wherry.models.codecs.codec import Call
from wherry.models.codecs.inference import INFERENCE
from wherry.models.codecs.predict import PREDICT
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.catalog import create_runtime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    target = tmp_path_factory.mktemp("iris")
    steps = []
    manifest = IRIS.run(IrisParameters(), {}, target, lambda *step: steps.append(step))
    assert steps[0] == ("training", 0, 2)
    assert steps[-1] == ("done", 2, 2)
    found = open_bundle(target)
    assert msgspec.to_builtins(found.manifest) == msgspec.to_builtins(manifest)
    return found


def ask(bundle, codec, name, body):
    runtime = create_runtime(bundle.manifest.runtime)
    runtime.load(bundle, "cpu")
    task, config = find_task(bundle.manifest.task), bundle.manifest.task_config()
    call = Call(name, "r", "iris", "1", 0)
    decoded = codec.decode(memoryview(json.dumps(body).encode()), call, task, config)
    outputs = runtime.run([runtime.prepare(item) for item in decoded.items])
    return json.loads(bytes(codec.encode(decoded, outputs, call, task, config).body))


def test_the_first_flower_is_a_setosa(bundle):
    answer = ask(bundle, PREDICT, "predict", bundle.manifest.sample)
    assert answer["label"] == "setosa"
    assert answer["confidence"] > 0.9
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0)


def test_features_may_be_named(bundle):
    named = {"sepal length": 6.5, "sepal width": 3.0, "petal length": 5.8, "petal width": 2.2}
    assert ask(bundle, PREDICT, "predict", named)["label"] == "virginica"


def test_it_answers_as_its_signature_says(bundle):
    tensor = {
        "name": "input",
        "datatype": "FP32",
        "shape": [2, 4],
        "data": [5.1, 3.5, 1.4, 0.2, 5.9, 2.8, 4.3, 1.3],
    }
    answer = ask(bundle, INFERENCE, "inference", {"inputs": [tensor]})
    specs = find_task(bundle.manifest.task).signature(bundle.manifest.task_config()).outputs
    outputs = answer["outputs"]
    assert [(each["name"], each["datatype"]) for each in outputs] == [
        (spec.name, spec.datatype) for spec in specs
    ]
    assert [each["shape"] for each in outputs] == [[2], [2], [2, 3]]
    assert outputs[0]["data"] == ["setosa", "versicolor"]
    assert outputs[1]["data"] == [0, 1]


def test_the_accuracy_is_measured_and_kept(bundle):
    assert bundle.manifest.options["accuracy"] > 0.9


def test_the_same_seed_makes_the_same_model(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        IRIS.run(IrisParameters(seed=3), {}, tmp_path / name, lambda *step: None)
    first, second = (
        ask(open_bundle(tmp_path / name), PREDICT, "predict", {"row": [6, 3, 5, 2]})
        for name in ("a", "b")
    )
    assert first == second


def test_a_cancelled_job_leaves_no_bundle(tmp_path):
    def cancel(stage, done, total):
        raise Cancelled("the job was cancelled")

    with pytest.raises(Cancelled):
        IRIS.run(IrisParameters(), {}, tmp_path, cancel)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values", [{"regularisation": 0}, {"test_share": 0.9}, {"seed": -1}, {"seed": "1"}, {"x": 1}]
)
def test_parameters_are_bounded(values):
    with pytest.raises(InvalidInput, match="'iris'"):
        read_parameters(IRIS, values)


def test_parameters_have_defaults():
    assert read_parameters(IRIS, {}) == IrisParameters()


def test_recipes_are_found_by_name():
    assert find_recipe("iris") is IRIS
    assert set(BUILT_IN) <= set(recipe_names())
    with pytest.raises(InvalidInput) as caught:
        find_recipe("nope")
    assert "iris" in caught.value.hint
