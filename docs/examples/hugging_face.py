"""A Hugging Face model as the model of a job: `sparsetrain run docs/examples/hugging_face.yaml` beside this file.

Its weights come from a safetensors file, `train.init_from: model.safetensors`, whose names are the module's own, as
`save_pretrained` writes them; without that line they are drawn anew. Needs `pip install transformers`.
"""

import dataclasses

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


class GPT2(nn.Module):
    """GPT-2 over bytes, small enough for a processor; linear layers may be masked, embeddings not."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        layers: int = 2
        width: int = 64
        heads: int = 4
        context: int = 64

    def __init__(self, config):
        super().__init__()
        sizes = {"n_layer": config.layers, "n_embd": config.width, "n_head": config.heads}
        sizes["n_positions"] = config.context
        inner = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes))
        # Its own submodules under their own names, so that a file of save_pretrained fits as it is.
        self.transformer, self.lm_head = inner.transformer, inner.lm_head

    def loss(self, batch):
        here, following = batch
        logits = self.lm_head(self.transformer(here).last_hidden_state)
        return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())

    def maskable(self):
        return [name for name, p in self.named_parameters() if p.ndim == 2 and ".h." in f".{name}"]
