"""Scene classification: one class an image, by a linear layer on pooled features."""

from configs.finetune import common


def get_config():
    """The class that covers most of a simulated scene."""
    return common.base(dict(name="classification", target="dominant", smoothing=0.1))
