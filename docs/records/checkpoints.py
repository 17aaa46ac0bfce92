"""What checkpoints cost the training thread: `python docs/records/checkpoints.py RUN...` prints a table of runs.

The spans are rank 0's: time/checkpoint_s is what the training thread needs to copy, and waits for the writer.
"""

import pathlib
import sys

import yaml

from sparsetrain.track.jsonl import read


def main(names: list[str]) -> None:
    """Print one row per run folder."""
    print("| run | every, steps | step, ms | checkpoint, ms each | share of the training thread's time |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        folder = pathlib.Path(name)
        job = yaml.safe_load((folder / "job.yaml").read_text())
        every = job["checkpoint"]["every"]
        rows = read(folder / "metrics.jsonl")[1:]  # the first interval warms up
        starts = [0, *(row["train/step"] for row in read(folder / "metrics.jsonl"))][1:-1]
        steps = [row["train/step"] - start for row, start in zip(rows, starts, strict=True)]
        whole = sum(row["time/step_s"] * count for row, count in zip(rows, steps, strict=True))
        saving = sum(row["time/checkpoint_s"] * count for row, count in zip(rows, steps, strict=True))
        each = f"{1e3 * saving / (sum(steps) / every):.1f}" if every else "-"
        print(f"| {folder.name} | {every or '-'} | {1e3 * whole / sum(steps):.1f} | {each} | {saving / whole:.2%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
