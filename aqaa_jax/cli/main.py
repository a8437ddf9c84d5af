"""The ``aqaa`` command: picks a subcommand, and turns errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

COMMANDS = {
    "ask": "answer a spoken question with speech",
    "tokenize": "recordings into stored codes",
    "pack": "stored codes into packed training data",
    "train": "train the stages of a config",
    "plan": "what a training step needs and takes on TPUs that are not here",
    "preflight": "check every host before a run",
    "export": "write trained weights as PyTorch files",
    "import": "published weights into a model folder",
    "merge": "weighted mean of checkpoints",
    "upcycle": "a dense model as a mixture of experts",
    "eval": "answers, transcripts, judgements and a report",
    "sweep": "arms of an experiment times seeds, figures and verdicts",
    "pocket-eval": "judge a pocket model on held-out spoken questions",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="aqaa",
        description="Speech in, speech out: ask the shipped model, or train your own.",
        epilog="`aqaa COMMAND --help` tells more.\n\ncommands:\n"
        + "\n".join(f"  {name:12} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv[:1])
    module = importlib.import_module(f"aqaa_jax.cli.{chosen.command.replace('-', '_')}")
    try:
        return module.run(argv[1:]) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("AQAA_TRACEBACK"):
            raise
        print(f"aqaa {chosen.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
