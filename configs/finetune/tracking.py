"""Tracking by detection: FCOS on every date, then association over a Kalman filter.

    python -m experiments.prepare  --simulate 120 --out data/simulated_tracks --size 96 --gsd 1 --dates 5 --sensors rgb
    python -m experiments.finetune --config configs/finetune/tracking.py --workdir runs/tracking

Measured (docs/results.md): MOTA 0.835 [0.739, 0.928], HOTA 0.755 on held-out scenes.
"""

from configs.finetune import detection


def get_config():
    """Vehicles and ships of simulated scenes over five dates."""
    config = detection.get_config()
    config.task.update(name="tracking", target="tracks", rotated=True)
    config.data.streams.data.directory = "data/simulated_tracks"
    config.data.batch_size = 2  # of five frames each
    # Objects move by 8 to 18 pixels from a date to the next, so boxes do not overlap; chosen on training scenes.
    config.task.tracker = dict(distance="centre", high=0.5, birth=0.5, jitter=1.5, speed=9.0, acceleration=0.3)
    return config
