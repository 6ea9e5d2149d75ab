"""Tasks: constant answers worked by hand, what they ask of heads, and which targets they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from ringmoe_jax import tasks
from ringmoe_jax.contracts import BOXES, CLASSES, MAP, MULTILABEL, TRACKS
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate.metrics import METRICS
from ringmoe_jax.models.heads import HEADS
from ringmoe_jax.tasks import SENSOR, Target

ABC = ("a", "b", "c")


def scores(task, target, answers, truths):
    metric = task.metric(target)
    for answer, truth in zip(answers, truths, strict=True):
        task.add(metric, answer, truth)
    return {name: value[0] for name, value in metric.values(np.ones((1, len(truths)))).items()}


def test_the_most_frequent_class_is_right_that_often():
    task, target = tasks.Classification(target="kind"), Target("kind", CLASSES, ABC)
    constant = task.constant([0, 2, 2, 1, 2, -1], target)
    assert scores(task, target, [constant] * 4, [2, 2, 0, 1])["accuracy"] == 0.5


def test_frequencies_order_the_labels_of_an_image():
    task, target = tasks.MultiLabel(target="kinds"), Target("kinds", MULTILABEL, ABC)
    constant = task.constant([[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1]], target)
    np.testing.assert_allclose(constant["probability"], [0.75, 0.25, 0.5])


def test_the_most_frequent_pixel_class_and_void():
    task, target = tasks.Segmentation(target="map"), Target("map", MAP, ABC, "rgb")
    truth = np.array([[0, 1], [1, -1]])
    constant = task.constant([truth], target)
    assert (constant["classes"] == 1).all()
    found = scores(task, target, [constant], [truth])
    assert found["OA"] == pytest.approx(2 / 3)
    assert found["mIoU"] == pytest.approx((0 + 2 / 3) / 2)  # c is nowhere: it is left out


def test_change_everywhere_has_the_f1_of_its_share():
    task, target = tasks.Change(target="change"), Target("change", MAP, ("same", "changed"), "rgb", dates=2)
    truth = np.array([[0, 0, 0, 1]])
    found = scores(task, target, [task.constant([truth], target)], [truth])
    assert found["F1"] == pytest.approx(2 * 0.25 / 1.25)


def test_the_mean_of_valid_heights():
    task, target = tasks.Height(target="ndsm"), Target("ndsm", SENSOR, (), "ndsm")
    truth = (np.array([[0.0, 10.0], [5.0, 99.0]]), np.array([[True, True], [True, False]]))
    constant = task.constant([truth], target)
    np.testing.assert_allclose(constant["height"], 5.0)
    assert scores(task, target, [constant], [truth])["RMSE"] == pytest.approx(np.sqrt(50 / 3))


def test_boxes_are_scored_after_suppression():
    task, target = tasks.Detection(target="boxes"), Target("boxes", BOXES, ABC, "rgb")
    truth = np.array([[1, 10, 10, 4, 4, 0], [-1, -1, -1, -1, -1, -1]], np.float32)
    answer = {
        "boxes": np.array([[10, 10, 4, 4, 0], [10.2, 10, 4, 4, 0], [30, 30, 4, 4, 0]], np.float32),
        "scores": np.array([0.9, 0.8, 0.1], np.float32),
        "classes": np.array([1, 1, -1]),
    }
    assert len(task.kept(answer["boxes"], answer["scores"], answer["classes"])[0]) == 1
    assert scores(task, target, [answer], [truth])["AP50"] == pytest.approx(1.0)
    nothing = task.constant([truth], target)
    assert scores(task, target, [nothing], [truth])["AP50"] == 0


def test_every_object_of_a_dense_image_is_found_and_counts():
    """Six hundred of one class; three points find each."""
    x, y = (axis.reshape(-1) for axis in np.meshgrid(np.arange(30) * 8.0, np.arange(20) * 8.0))
    truth = np.stack([np.zeros(600), x, y, *np.full((2, 600), 6.0), np.zeros(600)], axis=1)
    predictions = {
        "class": np.full((1, 1800, 1), 4.0, np.float32),
        "centreness": np.tile(np.linspace(0, 4, 600), 3)[None].astype(np.float32),
        "box": np.tile(truth[:, 1:], (3, 1))[None].astype(np.float32),
    }
    for scored, perfect in ((600, True), (100, False)):  # as DOTA, as COCO
        task = tasks.Detection(target="boxes", scored=scored)
        target = Target("boxes", BOXES, ("ship",), "rgb")
        answer = {name: np.asarray(rows[0]) for name, rows in task.answer(predictions, target).items()}
        (found, *_) = task.kept(*(answer[name] for name in ("boxes", "scores", "classes")))
        assert len(found) == 600
        assert (scores(task, target, [answer], [truth])["AP"] == 1) == perfect


def test_detections_of_two_dates_become_a_track():
    task = tasks.Tracking(target="tracks", tracker=tasks.objects.TrackerConfig(hits=1))
    target = Target("tracks", TRACKS, ABC, "rgb", dates=2)
    truth = np.array([[0, 10 + t, 10, 6, 4, 0, 7, t] for t in range(2)], np.float32)
    answer = {
        "boxes": truth[:, None, 1:6],
        "scores": np.full((2, 1), 0.9, np.float32),
        "classes": np.zeros((2, 1), np.int32),
    }
    found = scores(task, target, [answer], [truth])
    assert found["MOTA"] == pytest.approx(1.0)
    assert found["IDF1"] == pytest.approx(1.0)
    assert scores(task, target, [task.constant([truth], target)], [truth])["MOTA"] == 0


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        (tasks.Classification(target="x"), Target("x", MAP, ABC), "learns classes"),
        (tasks.Height(target="x"), Target("x", CLASSES, ABC), "learns sensor"),
        (tasks.Change(target="x"), Target("x", MAP, ABC, "rgb", dates=1), "change needs two"),
    ],
)
def test_targets_that_a_task_cannot_learn(task, target, message):
    with pytest.raises(ConfigError, match=message):
        task.check(target)


@pytest.mark.parametrize(
    ("task", "truth", "message"),
    [
        (tasks.Classification(target="x"), np.array([0, 3]), "holds 3 in row 1"),
        (tasks.Segmentation(target="x"), np.array([[[0, -2]]]), "holds -2"),
        (tasks.MultiLabel(target="x"), np.array([[0.0, 1.0, 2.0]]), "holds 2"),
        (tasks.Detection(target="x"), np.array([[[0, 5, 5, 0, 3, 0]]]), "have no area"),
        (tasks.Detection(target="x"), np.array([[[4, 5, 5, 2, 3, 0]]]), "holds 4"),
    ],
)
def test_truth_that_cannot_be_right_is_named(task, truth, message):
    with pytest.raises(DataError, match=message):
        task.check_truth(truth, Target("x", task.kinds[0], ABC))


def test_an_upernet_without_its_auxiliary_head_has_no_loss_for_it():
    task, target = tasks.Segmentation(target="map"), Target("map", MAP, ABC, "rgb")
    assert set(task.objectives(target, {})) == {"cross_entropy", "auxiliary"}
    assert set(task.objectives(target, dict(name="upernet", auxiliary=0))) == {"cross_entropy"}
    assert set(task.objectives(target, dict(name="fcn"))) == {"cross_entropy"}


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(ConfigError, match="segmentation"):
        tasks.build(dict(name="segmentaton", target="x"))


def test_what_answers_and_predictions_mean():
    """Names and ranks behind the batch, as exports describe them."""
    known = {}
    for part in (*tasks.TASKS.values(), *HEADS.values()):
        for name, meaning in (part.answers if issubclass(part, tasks.Task) else part.gives).items():
            key = (name, len(meaning.axes))
            assert known.setdefault(key, meaning) == meaning, key  # one name and rank means one thing
    assert {key: (meaning.axes, meaning.of_classes) for key, meaning in known.items()} == {
        ("logits", 1): (("class",), True),
        ("logits", 3): (("height", "width", "class"), True),
        ("probability", 1): (("class",), True),
        ("classes", 2): (("height", "width"), True),
        ("height", 2): (("height", "width"), False),
        ("class", 2): (("point", "class"), True),
        ("box", 2): (("point", "parameter"), False),
        ("centreness", 1): (("point",), False),
        ("points", 2): (("point", "coordinate"), False),
        ("boxes", 2): (("object", "parameter"), False),
        ("scores", 1): (("object",), False),
        ("classes", 1): (("object",), True),
    }


def test_what_tasks_are_called_elsewhere_and_say_of_whole_scenes():
    assert {name: (task.stac_task, task.maps) for name, task in tasks.TASKS.items()} == {
        "detection": ("object-detection", ("boxes",)),
        "tracking": ("object-detection", ("tracks",)),
        "segmentation": ("semantic-segmentation", ("classes", "probabilities")),
        "change": ("semantic-segmentation", ("classes", "probabilities")),
        "height": ("regression", ("heights",)),
        "classification": ("scene-classification", ("classes", "probabilities")),
        "multilabel": ("scene-classification", ("probabilities",)),
    }


@pytest.mark.parametrize(
    ("task", "predictions", "wanted"),
    [
        (tasks.Classification(target="x"), {"logits": [[0.0, 0.0]]}, [[[[0.5, 0.5]]]]),
        (tasks.MultiLabel(target="x"), {"logits": [[0.0, 100.0]]}, [[[[0.5, 1.0]]]]),
        (tasks.Segmentation(target="x"), {"logits": [[[[np.log(3.0), 0.0]]]]}, [[[[0.75, 0.25]]]]),
        (tasks.Height(target="x"), {"height": [[[3.0, 4.0]]]}, [[[[3.0], [4.0]]]]),
    ],
)
def test_numbers_of_a_window(task, predictions, wanted):
    found = task.windows({name: jnp.asarray(x) for name, x in predictions.items()})
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    target = Target("x", task.kinds[0], () if task.kinds == (SENSOR,) else ("a", "b"))
    assert len(task.map_names(target)) == found.shape[-1]


def test_another_metric_has_to_take_what_the_own_one_takes():
    target = Target("map", MAP, ABC, "rgb")
    named = tasks.Segmentation(target="map", scoring="segmentation").metric(target)
    assert type(named) is METRICS["segmentation"]
    with pytest.raises(ConfigError, match=r'task.scoring = "height" does not take what this task gives: make it from'):
        tasks.Segmentation(target="map", scoring="height").metric(target)
    with pytest.raises(ConfigError, match=r'task.scoring = "segmentaton" does not exist: did you mean "segmentation"'):
        tasks.Segmentation(target="map", scoring="segmentaton").metric(target)


def test_one_class_alone_is_not_scored():
    task = tasks.build(dict(name="segmentation", target="mask"))
    target = tasks.Target("mask", "map", ("land", "water"))
    with pytest.raises(DataError, match='truth of "mask" is void or "land" everywhere'):
        task.constant([np.array([[0, -1]]), np.array([[0, 0]])], target)
    assert (task.constant([np.array([[0, -1]]), np.array([[1, 1]])], target)["classes"] == 1).all()


@pytest.mark.parametrize(
    ("ignore", "message"), [(("watr",), 'did you mean "water"'), (("land",), "two classes or more")]
)
def test_ignored_classes_are_classes_and_leave_two(ignore, message):
    task = tasks.build(dict(name="segmentation", target="mask", ignore=ignore))
    with pytest.raises(ConfigError, match=message):
        task.check(tasks.Target("mask", "map", ("land", "water")))
