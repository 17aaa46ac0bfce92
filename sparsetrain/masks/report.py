"""What an update of the masks has come to."""

from __future__ import annotations

import dataclasses

from sparsetrain.masks.maskset import MaskSet


@dataclasses.dataclass(frozen=True)
class Report:
    """One mask update: epoch reached, weights dropped from and grown into the forward set, grown / active, sparsity
    aimed at and had, share of the structure's units that is out, share of the weights that have ever been active
    (ITOP's R_s). Couplings that share weights leave fewer of them than of units. `rewound`: all weights have gone back
    to an early step and the optimizer has forgotten everything; what else the caller keeps between steps, an exchange's
    residuals say, has to be forgotten too."""

    epoch: int
    dropped: int
    grown: int
    churn: float
    sparsity: float
    target_sparsity: float
    unit_sparsity: float
    explored: float
    old: MaskSet
    new: MaskSet
    rewound: bool = False
