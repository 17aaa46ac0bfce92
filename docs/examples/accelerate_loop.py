"""The hook inside accelerate: `torchrun --standalone --nproc-per-node 2 accelerate_loop.py`. Needs accelerate."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from sparsetrain import Exchange, HookState, comm_hook, torch_world

STEPS = 60


def main():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(torch.randn(STEPS * 64, 64)), batch_size=32, shuffle=True)
    ddp, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # accelerate has wrapped the model in DistributedDataParallel, whose parameters are the model's own.
    state = HookState(Exchange(density=0.02), accelerator.unwrap_model(ddp), torch_world(), steps=STEPS)
    ddp.register_comm_hook(state, comm_hook)
    for (x,) in loader:
        optimizer.zero_grad()
        loss = (ddp(x) - x).square().mean()
        accelerator.backward(loss)
        optimizer.step()
    print(f"rank {accelerator.process_index}: loss {loss:.3f}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
