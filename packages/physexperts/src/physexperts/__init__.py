"""Routers and experts for mixtures of physics: label priors, masks, balance, statistics."""

from importlib.metadata import version

from physexperts.balance import importance_loss, load_balancing_loss, router_z_loss
from physexperts.experts import OperatorExpert
from physexperts.labels import CATEGORIES, LAWS, MECHANISMS, QUESTIONS, Labels, from_text, from_wisa
from physexperts.mixture import Mixed, Mixture
from physexperts.routers import LabelPriorRouter, UniformRouter, random_labels
from physexperts.routing import Routing, route
from physexperts.sample_experts import Pairs, SampleExperts
from physexperts.stats import Health, RouterStats

__all__ = [
    "CATEGORIES",
    "LAWS",
    "MECHANISMS",
    "QUESTIONS",
    "Health",
    "LabelPriorRouter",
    "Labels",
    "Mixed",
    "Mixture",
    "OperatorExpert",
    "Pairs",
    "RouterStats",
    "Routing",
    "SampleExperts",
    "UniformRouter",
    "__version__",
    "from_text",
    "from_wisa",
    "importance_loss",
    "load_balancing_loss",
    "random_labels",
    "route",
    "router_z_loss",
]
__version__ = version("physexperts")
