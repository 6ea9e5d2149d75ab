"""Metrics of downstream tasks, on the host: NumPy, SciPy and shapely.

A metric takes one image (or sequence) after the other, `add(...)`, and then gives `values(weights)` for any weighting
of them, so that `score(metric)` has 95 % bootstrap intervals for free. `quantities` says of every value which
direction is better, its unit and its range. A config may name another metric for a task, `task.scoring`, one of your
own file too.

base.py             what every metric is, `score`, confusion matrices
classification.py   accuracy, average precision
segmentation.py     mIoU, binary and semantic change
detection.py        average precision of boxes as COCO and PASCAL VOC define it
tracking.py         HOTA, CLEAR MOT, identity scores
height.py           errors in metres and relative ones
boxes.py            overlap of upright and rotated boxes, non-maximum suppression
"""

from ringmoe_jax.evaluate.metrics.base import COUNT, METRICS, Metric, Quantity, Score, score
from ringmoe_jax.evaluate.metrics.classification import ClassificationMetric, MultiLabelMetric
from ringmoe_jax.evaluate.metrics.detection import DetectionMetric
from ringmoe_jax.evaluate.metrics.height import HeightMetric
from ringmoe_jax.evaluate.metrics.segmentation import ChangeMetric, SegmentationMetric, SemanticChangeMetric
from ringmoe_jax.evaluate.metrics.tracking import TrackingMetric

__all__ = [
    "COUNT",
    "METRICS",
    "ChangeMetric",
    "ClassificationMetric",
    "DetectionMetric",
    "HeightMetric",
    "Metric",
    "MultiLabelMetric",
    "Quantity",
    "Score",
    "SegmentationMetric",
    "SemanticChangeMetric",
    "TrackingMetric",
    "score",
]
