"""Your own model and data in a job: `sparsetrain run docs/examples/own_model.yaml`.

The job names the two classes of this file as `own_model:Sine` and `own_model:Waves`; the folder in which you call
sparsetrain is on the path of every worker, so call it beside this file.
"""

import dataclasses

import torch
from torch import nn


class Sine(nn.Module):
    """Three layers that learn the next value of a wave."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        width: int = 128
        window: int = 32

    def __init__(self, config):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.window, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
            nn.Linear(config.width, 1),
        )

    def forward(self, past):  # of a batch's first tensor: what `sparsetrain export` writes
        return self.layers(past).squeeze(1)

    def loss(self, batch):
        past, following = batch
        return nn.functional.mse_loss(self(past), following)


class Waves:
    """Windows of sums of sines; the sample's number is its seed, so that every rank makes its own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        window: int = 32

    def __init__(self, config):
        self.window = config.window
        self.train_size, self.eval_size = 20_000, 500

    def train_batch(self, indices):
        return self._make(indices)

    def eval_batch(self, indices):
        return self._make([self.train_size + int(index) for index in indices])

    def _make(self, indices):
        seeds = torch.as_tensor([int(index) for index in indices], dtype=torch.float32)
        time = torch.arange(self.window + 1) / 8.0
        phase, pace = seeds[:, None] * 0.37, 1.0 + (seeds[:, None] * 0.61) % 1.0
        waves = torch.sin(pace * time + phase) + 0.5 * torch.sin(2.3 * pace * time)
        return waves[:, :-1], waves[:, -1]
