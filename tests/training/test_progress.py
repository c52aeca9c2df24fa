"""The line that a run shows."""

from __future__ import annotations

import pytest
import torch

from panbench.training.progress import clock, describe


class _Module:
    def __init__(self) -> None:
        self.latest = {"loss": torch.tensor(0.04121), "psnr": 27.14}
        self.gaussians = [0] * 48211


def test_a_line_has_loss_psnr_count_speed_and_time_left() -> None:
    line = describe(_Module(), speed=20.0, left=2360)
    assert line == "loss 0.0412  PSNR 27.1  N 48,211  20.0 it/s  1:58 left"


def test_what_a_module_does_not_tell_is_left_out() -> None:
    assert describe(object(), speed=0.0, left=10) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (118, "1:58"), (3600, "1:00:00"), (7387, "2:03:07")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
