"""An exchange that has left its first steps behind, in which lowrank sends everything."""

from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import WARMING, GradientExchange


def under_way(config: Exchange, shapes: dict, world: World, steps: int) -> GradientExchange:
    """Return an exchange as it stands after the first steps, with nothing in its residuals."""
    exchange = GradientExchange(config, shapes, world, steps)
    exchange.step = WARMING
    return exchange
