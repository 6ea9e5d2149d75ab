"""Tracking by detection: FCOS on every date, then association over a Kalman filter."""

from configs.finetune import detection


def get_config():
    """Vehicles and ships of simulated scenes over five dates."""
    config = detection.get_config()
    config.task.update(name="tracking", target="tracks", rotated=True)
    config.data.streams.data.directory = "data/simulated_tracks"
    config.data.batch_size = 2  # of five frames each
    # Objects move by 8 to 18 pixels from a date to the next, so boxes do not overlap; chosen on training scenes.
    config.task.tracker = dict(distance="centre", high=0.5, low=0.1, birth=0.5, jitter=1.5, speed=9.0, acceleration=0.3)
    return config
