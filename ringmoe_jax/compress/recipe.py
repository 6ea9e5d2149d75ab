"""What is done to a network to make it smaller: experts pruned, merged, or both."""

from __future__ import annotations

import dataclasses

from ringmoe_jax.compress.merging import MERGES, merge
from ringmoe_jax.compress.pruning import SCOPES, TABLES, Allowed, choose, prune
from ringmoe_jax.compress.usage import IMPORTANCES, Usage, importance
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.api import Network

SUBMODEL, PRUNE = "submodel", "prune"
METHODS = (SUBMODEL, PRUNE, *MERGES)
PAPER_KEEP = 0.25  # of the collaborative experts: RingMoE's 6.5 B parameters become 4.5 B
NEEDS_USAGE = ("weighted", "select")  # merges that weigh experts or hidden units by what they did
RESIZES = ("svd", "select")  # merges that choose hidden units, and may choose fewer or more of them


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to a sub-model.

    Attributes:
        method: one of `METHODS`: "submodel" and nothing more, "prune" experts, or merge those of every layer, perhaps
            after pruning, into one dense feed-forward.
        keep: share of the collaborative experts that stay, above 0 and at most 1; None is a quarter for "prune" (the
            paper's) and all of them where experts are merged.
        parameters: prune until at most so many parameters are left, instead of `keep`; 0 is not asked.
        importance: what says which experts stay, one of `IMPORTANCES`.
        scope: "layer" keeps as many in every layer, "global" ranks the experts of all layers together.
        tables: with several modalities, "shared" keeps the same experts for all of them, "own" each its own.
        hidden_ratio: F / D of a merged feed-forward; 0 leaves it as it is.
        distil: optimiser steps of distillation from the sub-model that follow, which whoever has the data takes; 0 is
            none.

    Raises:
        ConfigError: no such method or choice, a number out of its range, or settings that contradict each other.
    """

    method: str
    keep: float | None = None
    parameters: int = 0
    importance: str = "frequency"
    scope: str = "layer"
    tables: str = "shared"
    hidden_ratio: int = 0
    distil: int = 0

    def __post_init__(self):
        choices = {"method": METHODS, "importance": IMPORTANCES, "scope": SCOPES, "tables": TABLES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f'{name} = "{getattr(self, name)}" does not exist: {nearest(getattr(self, name), known)}'
                )
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ConfigError(f"keep = {self.keep}: wanted the share of experts that stay, above 0 and at most 1")
        for name in ("parameters", "hidden_ratio", "distil"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: wanted 0 or more")
        if self.keep is not None and self.parameters:
            raise ConfigError("keep and parameters both say how much stays: give one of them")
        if self.method == SUBMODEL and (self.keep not in (None, 1) or self.parameters or self.distil):
            raise ConfigError(
                f'method = "{SUBMODEL}" is exact and keeps every expert: leave out keep, parameters and distil'
            )
        if self.hidden_ratio and self.method not in RESIZES:
            raise ConfigError(
                f'hidden_ratio = {self.hidden_ratio}: method = "{self.method}" cannot change how wide a feed-forward '
                f"is, {' and '.join(RESIZES)} can"
            )
        if self.keep is None and not self.parameters:
            object.__setattr__(self, "keep", PAPER_KEEP if self.method == PRUNE else 1.0)

    @property
    def prunes(self) -> bool:
        """Whether experts are taken away before anything else."""
        return bool(self.parameters) or self.keep < 1

    @property
    def needs_usage(self) -> bool:
        """Whether somebody has to count first what the experts do."""
        return self.prunes or self.method in NEEDS_USAGE

    @property
    def title(self) -> str:
        """For people, for example "sum, keep 0.25, 200 steps of distillation"."""
        kept = [f"at most {self.parameters:,} parameters"] if self.parameters else []
        kept += [f"keep {self.keep:g}"] if self.keep is not None and self.keep < 1 else []
        ratio = [f"hidden ratio {self.hidden_ratio}"] if self.hidden_ratio else []
        distilled = [f"{self.distil} steps of distillation"] if self.distil else []
        return ", ".join([self.method, *kept, *ratio, *distilled])

    def allowed(self, network: Network, usage: Usage) -> Allowed:
        """Who may choose what in every layer of the pruned network; see `compress.choose`."""
        how = {"parameters": self.parameters} if self.parameters else {"keep": self.keep}
        return choose(network, importance(usage, self.importance), scope=self.scope, tables=self.tables, **how)

    def __call__(self, network: Network, usage: Usage | None = None) -> Network:
        """Prunes, merges, or both; a sub-model stays as it is.

        Args:
            network: the sub-model.
            usage: of its experts, where `needs_usage`.
        """
        if self.prunes:
            network = prune(network, self.allowed(network, usage))
        if self.method in MERGES:
            network = merge(network, self.method, usage, self.hidden_ratio or None)
        return network
