"""From the full model to a deployable one: every operation takes a `Network` and gives one, so that they chain.

    usage       who chose which experts how often, and how much they added
    pruning     which experts stay, and a network without the others
    merging     one dense feed-forward a layer from all its experts
    recipe      pruning and merging as one step, with its settings
    quantise    kernels as 8-bit integers
    online      pruning while a model trains
    counting    a pass over images that gives a usage, and can be stopped and resumed
    costs       parameters, bytes, products, time and memory of networks side by side
    results     what a compression gained and lost

What an operation does to the config alone (`submodel_config`, `pruned_config`, `merged_config`) says how large the
result will be before any parameters exist. What a layer is (`models.network`) and the part that some sensors use
(`models.submodel`) are with the model. All work on parameters happens on the host.
"""

from ringmoe_jax.compress.merging import MERGES, merge, merged_config
from ringmoe_jax.compress.pruning import choose, prune, pruned_config
from ringmoe_jax.compress.quantise import Quantised, dequantise, nbytes, quantise
from ringmoe_jax.compress.usage import IMPORTANCES, Usage, importance
from ringmoe_jax.models.api import Network
from ringmoe_jax.models.network import read
from ringmoe_jax.models.submodel import submodel, submodel_config

__all__ = [
    "IMPORTANCES",
    "MERGES",
    "Network",
    "Quantised",
    "Usage",
    "choose",
    "dequantise",
    "importance",
    "merge",
    "merged_config",
    "nbytes",
    "prune",
    "pruned_config",
    "quantise",
    "read",
    "submodel",
    "submodel_config",
]
