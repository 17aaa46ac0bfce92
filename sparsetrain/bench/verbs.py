"""`sparsetrain bench`: each verb measures on this machine."""

from sparsetrain.bench import counting_verbs, simulating_verbs, timing_verbs
from sparsetrain.bench.verb import bench

__all__ = ["bench", "counting_verbs", "simulating_verbs", "timing_verbs"]
