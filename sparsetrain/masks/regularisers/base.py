"""What a regulariser declares and does."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from torch import Tensor

from sparsetrain.masks.present import Present


class Regulariser(abc.ABC):
    """A penalty on the weights of every masked tensor, whatever method prunes them.

    Its gradient is added to the mean gradient, after the exchange and after clipping, because of the weights alone: it
    never travels, and is equal on all ranks. At zero it is zero, which all of these penalties allow: a weight that has
    just been grown is free to leave zero, and none is ever driven across it from rest. Weights are made small, not
    zero; what is pruned is for the method to say.
    """

    structures: ClassVar[tuple[str, ...]] = ()  # the only ones that the penalty makes sense for; none named: all
    takes_units: ClassVar[bool] = False  # True: it looks at subjects of the structure and their units, not at tensors

    def __init__(self, config: Any) -> None:
        self.config = config

    @abc.abstractmethod
    def pull(self, present: Present) -> Tensor:
        """Return the penalty's gradient, shaped as the tensor; outside the update set it is not looked at. A weight
        of two couplings gets the sum of both."""
