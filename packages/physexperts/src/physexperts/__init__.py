"""Routers and experts for mixtures of physics: label priors, masks, balance, statistics."""

from importlib.metadata import version

from physexperts.balance import importance_loss, load_balancing_loss, router_z_loss
from physexperts.experts import OperatorExpert
from physexperts.keywords import Keywords, from_text
from physexperts.labels import CATEGORIES, LAWS, MECHANISMS, QUESTIONS, Labels, from_wisa
from physexperts.mixture import Mixed, Mixture
from physexperts.routers import LabelPriorRouter, UniformRouter, random_labels
from physexperts.routing import Routing, route
from physexperts.sample_experts import Pairs, SampleExperts
from physexperts.token_experts import GLUExperts, LinearExperts
from physexperts.stats import Health, RouterStats

__all__ = [
    "CATEGORIES",
    "LAWS",
    "MECHANISMS",
    "QUESTIONS",
    "Health",
    "Keywords",
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
