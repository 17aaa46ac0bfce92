"""`python -m sparsetrain.doctor [JOB] [a.b=c ...] [--json]`: one rank of an examination of the cluster."""

from __future__ import annotations

import sys

from sparsetrain.config.errors import JobError
from sparsetrain.doctor.ranks import examine_as_rank, example


def main(words: list[str]) -> int:
    """Examine and return the exit code; a user's mistake is one line and code 2."""
    named = [word for word in words if word != "--json"]
    try:
        return examine_as_rank(example(named), "--json" in words)
    except JobError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
