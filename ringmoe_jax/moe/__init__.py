"""Mixture of experts: who may choose what, who chose what, and how it is computed.

    table     which experts each modality may choose (`allowed[M, E]`)
    routing   router scores to expert indices and gates, by a router that a config names
    experts   the experts' parameters and their two matrix products
    dispatch  choices to rows and back, by gathers in both directions
    exchange  rows between devices, different numbers of them
    engines   tokens to outputs, given the choice: `dense` (reference), `capacity`, `dropless`
    parallel  an engine run on a mesh, experts split over its "expert" axis
    contribution  what every expert adds, measured for pruning
    statistics  loads, drops, entropies and balance losses, per modality

Everything here is a pure function of arrays; nothing depends on Flax.
"""
