"""Protocols, predictions folders, the scorer and its results. Needs neither Lightning nor a model."""

from panbench.protocol.predictions import Manifest, PredictionSet, PredictionWriter
from panbench.protocol.protocol import Protocol, protocol_ids
from panbench.protocol.results import SceneResult
from panbench.protocol.score import SceneTruth, rescore, score

__all__ = [
    "Manifest",
    "PredictionSet",
    "PredictionWriter",
    "Protocol",
    "SceneResult",
    "SceneTruth",
    "protocol_ids",
    "rescore",
    "score",
]
