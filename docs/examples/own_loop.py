"""A loop of your own with both halves: `torchrun --standalone --nproc-per-node 2 own_loop.py`."""

import torch
import torch.distributed as dist

from sparsetrain import Exchange, GradientExchange, MaskController, Masks, torch_world

STEPS = 80


def main():
    dist.init_process_group("gloo")
    world = torch_world()
    torch.manual_seed(0)  # replicas start from equal weights
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    torch.manual_seed(1 + world.rank)  # and see different data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    parameters = dict(model.named_parameters())
    exchange = GradientExchange(
        Exchange(density=0.02), {name: tuple(p.shape) for name, p in parameters.items()}, world, STEPS
    )
    masks = MaskController(
        Masks(method="set", sparsity=0.8, every=20),
        parameters,
        maskable=["0.weight", "2.weight"],
        seed=0,
        steps=STEPS,
        gather=world.transport.gather_bytes,
        mean=lambda tensors: world.transport.mean(tensors, "mask"),
    )
    exchange.set_masks(masks.limits, epoch=0)
    for step in range(1, STEPS + 1):
        x = torch.randn(32, 64)
        optimizer.zero_grad()
        with masks.forward(step):
            loss = (model(x) - x).square().mean()
            loss.backward()
        local = {name: p.grad for name, p in parameters.items()}
        masks.observe(step, local)
        mean = exchange.aggregate(local)
        if mean is None:
            continue  # a gradient was not finite on some rank: all ranks skip
        for name, p in parameters.items():
            p.grad = mean[name]
        masks.pull(step)
        optimizer.step()
        masks.mask_weights()
        if masks.step(step, optimizer):
            exchange.set_masks(masks.limits, masks.masks.epoch)
    exchange.close()
    print(f"rank {world.rank}: loss {loss:.3f}, {masks.masks.sparsity():.0%} of the masked weights are zero")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
