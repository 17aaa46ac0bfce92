"""A random mask that never changes: the control for every other method."""

from __future__ import annotations

from torch import Tensor

from sparsetrain.config.component import NoOptions
from sparsetrain.masks.methods.base import MaskMethod, Moment


class Static(MaskMethod):
    """Random mask, the same for the whole run. Needs nothing on the wire."""

    Config = NoOptions

    changes = False

    def update(self, moment: Moment) -> Tensor:
        """Return the mask as it is."""
        return moment.mask
