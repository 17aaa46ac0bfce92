"""The hook inside Ray Train, which starts the workers and the process group: `python ray_train.py`."""

import pathlib
import tempfile

import ray.train
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from sparsetrain import Exchange, HookState, comm_hook, torch_world

STEPS = 40


def train(config):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    ddp = prepare_model(model)  # Ray Train's own wrapping in DistributedDataParallel
    torch.manual_seed(1 + dist.get_rank())
    state = HookState(Exchange(density=config["density"], dense_below=64), model, torch_world(), steps=STEPS)
    ddp.register_comm_hook(state, comm_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(32, 64)
        loss = (ddp(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            ray.train.report({"step": step + 1, "loss": float(loss)})


def main():
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            train,
            train_loop_config={"density": 0.05},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(storage_path=str(pathlib.Path(folder).absolute()), name="sparse"),
        )
        result = trainer.fit()
    print(f"loss {result.metrics['loss']:.3f} after {result.metrics['step']} steps")


if __name__ == "__main__":
    main()
