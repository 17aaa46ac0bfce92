"""A small byte-level GPT: pre-norm, causal attention, tied input and output embedding."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.numbers import BelowOne, Positive


class Block(nn.Module):
    """Attention and a four times wider MLP, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_width = width // heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # How many heads there are, the rows say: a model that was shrunk has fewer.
        heads = (-1, self.head_width)
        parts = self.qkv(self.norm_attention(x)).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, heads).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + F.dropout(self.project(mixed.transpose(1, 2).flatten(2)), dropout, self.training)
        return x + F.dropout(self.contract(F.gelu(self.expand(self.norm_mlp(x)))), dropout, self.training)


class GPT(nn.Module):
    """Byte-level GPT; a batch is (bytes [B, T], next bytes [B, T]), both int64."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`width` must be a multiple of `heads`."""

        layers: Positive = 4
        width: Positive = 128
        heads: Positive = 4
        context: Positive = 128  # longest sequence
        vocabulary: Positive = 256
        dropout: BelowOne = 0.0

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    units = "byte"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                # Residual branches add up over the depth (GPT-2).
                deep = name.endswith(("project.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.layers) if deep else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def maskable(self) -> list[str]:
        """Return the names of the block matrices; embeddings, the tied head and norms stay dense."""
        return [name for name, p in self.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]

    def couplings(self) -> list[Coupling]:
        """Return the attention heads and the MLP neurons of each block.

        A head is its rows of q, k and v, which lie one after the other in `qkv`, and its columns of `project`.
        """
        found = []
        for n in range(self.config.layers):
            block = f"blocks.{n}"
            heads = Coupling(
                name=f"{block}.attention",
                kind="head",
                units=self.config.heads,
                makes=(Slice(f"{block}.qkv.weight", parts=3), Slice(f"{block}.qkv.bias", parts=3)),
                reads=(Slice(f"{block}.project.weight", axis=1),),
            )
            neurons = Coupling(
                name=f"{block}.mlp",
                kind="neuron",
                units=4 * self.config.width,
                makes=(Slice(f"{block}.expand.weight"), Slice(f"{block}.expand.bias")),
                reads=(Slice(f"{block}.contract.weight", axis=1),),
            )
            found += [heads, neurons]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, T, vocabulary]."""
        h = self.embed(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy in nats per byte."""
        logits = self(batch[0])
        return F.cross_entropy(logits.float().flatten(0, 1), batch[1].flatten())

    def metrics(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return sums over the batch's bytes: loss_sum (nats) and count."""
        logits = self(batch[0]).float().flatten(0, 1)
        loss = F.cross_entropy(logits, batch[1].flatten(), reduction="sum")
        return {"loss_sum": loss, "count": torch.tensor(batch[1].numel())}
