"""Change detection: what differs between the first and the last date, by a Siamese encoder."""

from configs.finetune import common


def get_config():
    """Changed land cover of simulated scenes."""
    config = common.base(dict(name="change", target="change"), directory="data/simulated_change")
    config.head = dict(name="change_difference", decoder="fcn", channels=64, dropout=0.1)
    return config
