"""Write generated worlds, and judge what a synthesizer made of them: python -m instructpt.synthesis.worlds -h."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from instructpt.api.runspec import ResolvedInput
from instructpt.corpus.shards import iter_augmented
from instructpt.synthesis.worlds import make_examples, score, write_collection, write_corpus


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands ``tasks``, ``corpus`` and ``score``."""
    parser = argparse.ArgumentParser(prog="python -m instructpt.synthesis.worlds", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in {
        "tasks": "write a collection of tasks to tune on, a file a domain",
        "corpus": "write documents of names and wordings that tuning never shows",
        "score": "judge the pairs of an augmented corpus made from that",
    }.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("place", help="folder of the collection, file of the corpus, or the augmented corpus")
        command.add_argument("--examples", type=int, default=1000, help="of each of the six domains (default: 1000)")
        command.add_argument("--seed", type=int, default=1, help="of every choice (default: 1)")
    given = parser.parse_args(argv)
    examples = make_examples(given.seed, given.examples, held_out=given.command != "tasks")
    if given.command == "tasks":
        paths = write_collection(Path(given.place), examples)
        print(f"Wrote {len(examples)} examples, {sum(len(e.pairs) for e in examples)} pairs, to {len(paths)} files.")
    elif given.command == "corpus":
        write_corpus(Path(given.place), examples)
        print(f"Wrote {len(examples)} documents to {given.place}.")
    else:
        made = score(examples, iter_augmented(ResolvedInput(uri=given.place)))
        rates = {"parse_rate": round(made.parse_rate, 4), "accuracy": round(made.accuracy, 4)}
        print(json.dumps({**rates, **asdict(made)}, indent=1))


if __name__ == "__main__":
    main()
