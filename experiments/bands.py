"""Which bands a model can do without, and what it makes of those that it never saw.

Errors at hidden pixels by band and in nats, and probes of features.

    python -m experiments.bands --checkpoint runs/any/physics                         # all bands of its data set
    python -m experiments.bands --checkpoint runs/any/physics --show B02 B03 B04 B08 --beside runs/any/fixed_four
    python -m experiments.bands --checkpoint runs/any/physics --score B05 B06 B8A     # bands that it was not trained on

A model whose stem is made from what bands are (`model.stem = "physics"`) is told which bands are missing, and says
bands that it never saw. Others are shown the mean of missing bands; what they have no decoder of is interpolated
between its neighbours in wavelength. Random weights and the training mean stand beside them. Where tiles have class
labels, probes say what mean tokens are worth where these bands are shown, beside statistics of the bands themselves; of
a model without a decoder of pixels they are all. Writes `bands.json` to `<checkpoint>/report/bands`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.run import cli


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bands", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=cli.folder, required=True, help="folder of a pre-training run")
    parser.add_argument("--beside", type=cli.folder, nargs="+", default=(), help="folders of others")
    parser.add_argument("--dataset", type=cli.local, default="", help="folder; default: that of the run")
    parser.add_argument("--sensor", default="", help="default: the first of the run")
    parser.add_argument("--show", nargs="+", default=(), help="bands that are shown; default: all of the data set")
    parser.add_argument(
        "--score", dest="scored", nargs="+", default=(), help="bands that are to be said; default: those shown"
    )
    parser.add_argument("--split", default="", help='default: "test" where there is one, else "validation"')
    parser.add_argument("--seed", type=int, default=0, help="of masks, random weights and intervals; default: 0")
    parser.add_argument("--out", type=cli.folder, default="", help="folder; default: <checkpoint>/report/bands")
    cli.add_modules(parser)
    return parser.parse_args(arguments)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = vars(parse(arguments))
    from experiments.run import bands
    from ringmoe_jax import remote

    cli.start()
    options.pop("modules", None)
    options |= {name: remote.copied(options[name]) for name in ("checkpoint", "out")}
    bands.show_scores(bands.score(**options))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
