import pytest
import torch

from sparsetrain.engine.checkpoint import CheckpointError, check_optimizer_state


def test_state_that_no_optimizer_can_have_come_to_is_refused():
    check_optimizer_state("exp_avg/weight", torch.tensor([-1.0, 2.0]))
    check_optimizer_state("exp_avg_sq/weight", torch.tensor([0.0, 2.0]))
    with pytest.raises(CheckpointError, match="optimizer state exp_avg_sq/weight is negative"):
        check_optimizer_state("exp_avg_sq/weight", torch.tensor([-1e-9, 2.0]))
    with pytest.raises(CheckpointError, match="optimizer state exp_avg/weight is not finite"):
        check_optimizer_state("exp_avg/weight", torch.tensor([float("nan")]))
