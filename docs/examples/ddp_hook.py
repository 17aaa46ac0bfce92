"""DistributedDataParallel with a sparse exchange: `torchrun --standalone --nproc-per-node 2 ddp_hook.py`."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparsetrain import Exchange, HookState, comm_hook, torch_world

STEPS = 80


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    ddp = DistributedDataParallel(model)
    torch.manual_seed(1 + dist.get_rank())
    state = HookState(Exchange(density=0.02), model, torch_world(), steps=STEPS)
    ddp.register_comm_hook(state, comm_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(32, 64)
        loss = (ddp(x) - x).square().mean()
        loss.backward()  # the gradients that arrive are the mean over ranks
        optimizer.step()
    kept = sum(float(residual.norm()) for residual in state.state().values())
    print(f"rank {dist.get_rank()}: loss {loss:.3f}, residuals of norm {kept:.3g} go into your checkpoint")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
