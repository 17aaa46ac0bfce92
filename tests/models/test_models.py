import pytest
import torch

from sparsetrain import registry

BATCHES = {
    "gpt": lambda: (torch.randint(0, 256, (2, 16)), torch.randint(0, 256, (2, 16))),
    "mlp": lambda: (torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,))),
    "cnn": lambda: (torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,))),
}
SMALL = {"gpt": {"layers": 1, "width": 16, "heads": 2, "context": 16}}


def make(name: str):
    torch.manual_seed(0)
    cls = registry.load("model", name)
    return cls(cls.Config(**SMALL.get(name, {})))


@pytest.mark.parametrize("name", registry.names("model"))
def test_every_model_learns_a_batch_by_heart_and_its_sums_agree_with_its_loss(name):
    model, batch = make(name), BATCHES[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    found = model.metrics(batch)
    assert found["loss_sum"].item() / int(found["count"]) == pytest.approx(model.loss(batch).item(), rel=1e-5)


@pytest.mark.parametrize("name", registry.names("model"))
def test_maskable_names_are_weight_matrices_once_each(name):
    model = make(name)
    parameters = dict(model.named_parameters())
    chosen = model.maskable()
    assert chosen and len(set(chosen)) == len(chosen)
    assert all(parameters[one].ndim >= 2 for one in chosen)


def test_the_embedding_and_its_tied_head_are_never_masked():
    model = make("gpt")
    assert model.head.weight is model.embed.weight
    assert not any("embed" in name or "head" in name or "position" in name for name in model.maskable())


def test_lenet_has_the_published_number_of_weights():
    model = make("mlp")
    assert sum(p.numel() for name, p in model.named_parameters() if name in model.maskable()) == 266_200


def test_gpt_does_not_look_ahead():
    model = make("gpt").eval()
    x = torch.randint(0, 256, (1, 16))
    y = x.clone()
    y[0, 10] = (y[0, 10] + 1) % 256
    assert torch.allclose(model(x)[0, :10], model(y)[0, :10], atol=1e-6)
    assert not torch.allclose(model(x)[0, 10:], model(y)[0, 10:])
