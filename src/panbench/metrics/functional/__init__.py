"""Panoptic scores as pure functions of joint pixel counts, and errors of depth maps (numpy, float64, no state)."""

from panbench.metrics.functional.counts import PairCounts, concatenate, count_pairs
from panbench.metrics.functional.coverage import CoverageStatistics, coverage_statistics
from panbench.metrics.functional.depth_errors import DepthErrors, depth_errors
from panbench.metrics.functional.diagnosis import InstanceDiagnosis, diagnose
from panbench.metrics.functional.panoptic_quality import ClassAverage, PanopticStatistics, panoptic_statistics
from panbench.metrics.functional.segments import SegmentRule, Segments, build_segments
from panbench.metrics.functional.semantic_quality import SemanticRule, SemanticStatistics, semantic_statistics

__all__ = [
    "ClassAverage",
    "CoverageStatistics",
    "DepthErrors",
    "InstanceDiagnosis",
    "PairCounts",
    "PanopticStatistics",
    "SegmentRule",
    "Segments",
    "SemanticRule",
    "SemanticStatistics",
    "build_segments",
    "concatenate",
    "count_pairs",
    "coverage_statistics",
    "depth_errors",
    "diagnose",
    "panoptic_statistics",
    "semantic_statistics",
]
