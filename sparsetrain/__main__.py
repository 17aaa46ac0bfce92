"""`python -m sparsetrain` is the `sparsetrain` command."""

from __future__ import annotations

from sparsetrain.cli import main

main()
