"""What this machine, or a whole cluster, offers to a run, and what is wrong with it."""
