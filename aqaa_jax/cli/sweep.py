"""``aqaa sweep --config=configs/experiments/patterns.py[:toy] [--run_dir=DIR] [--arms=a,b] [--seeds=0,1]``."""

from __future__ import annotations

from absl import flags

from aqaa_jax.cli import config_file
from aqaa_jax.config import from_dict

HELP = """usage: aqaa sweep --config=configs/experiments/patterns.py[:toy|:pocket] [--config.field=value ...]
                  [--run_dir=runs/NAME] [--arms=10_15,3_5] [--seeds=0,1] [--results=FILE]

Trains and measures every arm of an experiment with every seed, and prints the figures and verdicts so far. Finished
cells are skipped, interrupted ones go on: the same command again resumes everything. Results go to
RUN_DIR/results.json and, with --results, to FILE too: the notebooks read notebooks/results/NAME.json.
"""


def run(argv: list[str]) -> int:
    """Parse flags, build the sweep, run it. Raises ``ValueError`` for a bad flag or config value."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    chosen, args = config_file.read("aqaa sweep", argv, _define)
    from aqaa_jax.atomic import write_json
    from aqaa_jax.experiments.config import SweepConfig
    from aqaa_jax.experiments.show import summary
    from aqaa_jax.experiments.sweep import run_sweep

    sweep = from_dict(SweepConfig, chosen)
    try:
        seeds = [int(seed) for seed in args.seeds or ()]
    except ValueError:
        raise ValueError(f"--seeds is {','.join(args.seeds)}; expected numbers") from None
    results = run_sweep(sweep, args.run_dir or f"runs/{sweep.name}", arms=args.arms or (), seeds=seeds)
    if args.results:
        write_json(args.results, results)
    print(summary(results))
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run_dir", None, "where cells and results go", flag_values=values)
    flags.DEFINE_list("arms", None, "only these arms", flag_values=values)
    flags.DEFINE_list("seeds", None, "only these seeds", flag_values=values)
    flags.DEFINE_string("results", None, "where the results are copied to", flag_values=values)
