"""Tracking by detection: FCOS on every date, then association over a Kalman filter."""

from configs.finetune import detection


def get_config():
    """Vehicles and ships of simulated scenes over five dates."""
    config = detection.get_config()
    config.task.update(name="tracking", target="tracks", rotated=True)
    config.data.streams.data.directory = "data/simulated_tracks"
    config.data.batch_size = 2  # of five frames each
    config.task.tracker = dict(distance="iou", high=0.4, low=0.1, birth=0.4, jitter=0.5, speed=5.0, acceleration=0.5)
    return config
