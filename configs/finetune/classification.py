"""Scene classification: one class an image, by a linear layer on pooled features."""

from configs.finetune import common


def get_config():
    """Whether a simulated scene shows a town, a coast, both or neither."""
    return common.base(dict(name="classification", target="setting", smoothing=0.1))
