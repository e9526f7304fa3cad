"""Routers and experts for mixtures of physics: label priors, masks, balance, statistics."""

from importlib.metadata import version

from physexperts.alignment import PairQueue, Whole, collect, label_loss, relative_alignment
from physexperts.balance import Tally, importance_loss, load_balancing_loss, router_z_loss, tally
from physexperts.basis import BasisMaps
from physexperts.chat import LocalModel, NoAnswer, Server
from physexperts.expert_parallel import ExpertParallel
from physexperts.experts import OperatorExpert, operator
from physexperts.heads import FloorGate, HeadExperts
from physexperts.keywords import Keywords, from_text
from physexperts.labels import CATEGORIES, LAWS, MECHANISMS, QUESTIONS, Labels, from_wisa
from physexperts.llm import LanguageModel, Parser, refine
from physexperts.maps import expert_maps, experts_picture, heat_picture
from physexperts.mixture import Mixed, Mixture
from physexperts.routers import LabelPriorRouter, SoftRouter, UniformRouter, masked_mean, multi_hot, random_labels
from physexperts.routing import Routing, route
from physexperts.sample_experts import Pairs, SampleExperts
from physexperts.score import Score, macro_f1, score
from physexperts.stats import Health, Limits, RouterStats
from physexperts.token_experts import GLUExperts, LinearExperts
from physexperts.token_router import TokenTopKRouter

__all__ = [
    "CATEGORIES",
    "LAWS",
    "MECHANISMS",
    "QUESTIONS",
    "BasisMaps",
    "ExpertParallel",
    "FloorGate",
    "GLUExperts",
    "HeadExperts",
    "Health",
    "Keywords",
    "LabelPriorRouter",
    "Labels",
    "LanguageModel",
    "Limits",
    "LinearExperts",
    "LocalModel",
    "Mixed",
    "Mixture",
    "NoAnswer",
    "OperatorExpert",
    "PairQueue",
    "Pairs",
    "Parser",
    "RouterStats",
    "Routing",
    "SampleExperts",
    "Score",
    "Server",
    "SoftRouter",
    "Tally",
    "TokenTopKRouter",
    "UniformRouter",
    "Whole",
    "__version__",
    "collect",
    "expert_maps",
    "experts_picture",
    "from_text",
    "from_wisa",
    "heat_picture",
    "importance_loss",
    "label_loss",
    "load_balancing_loss",
    "macro_f1",
    "masked_mean",
    "multi_hot",
    "operator",
    "random_labels",
    "refine",
    "relative_alignment",
    "route",
    "router_z_loss",
    "score",
    "tally",
]
__version__ = version("physexperts")
