"""The benchmark measures what it says: a fixed workload, peers that compute the same, true counts, honest ratios."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench_rasterizer
from benchmark import report
from benchmark.results import TARGETS, CaseResult, Results, channel_shares
from benchmark.timing import Contestant, Plan, Sample, measure, ratio, summary
from benchmark.views import PEERS, Case, OpenSplat, PeerName, QueryView, Views, agreement
from benchmark.workload import NEAR, ROOM, SURFACES, cameras, furnished_room
from panbench import ops
from panbench.errors import UserError
from panbench.ops.backend import load_cpu
from peers import torch_pairs
from peers.plain import contributions

TINY = Case("ellipsoid", 1500, 48, 36, 5)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


@pytest.fixture(scope="module")
def views() -> Views:
    return Views(TINY, furnished_room(TINY.count), 2)


# -------------------------------------------------------------------------------------------------------- workload


def test_a_seed_fixes_the_room_and_a_smaller_one_is_its_first_part() -> None:
    large, again, small, other = furnished_room(3000), furnished_room(3000), furnished_room(500), furnished_room(500, 1)
    for name, value in vars(large).items():
        assert torch.equal(value, vars(again)[name])
        assert torch.equal(value[:500], vars(small)[name])
    assert not torch.equal(small.means, other.means)


def test_the_room_is_as_described() -> None:
    room = furnished_room(50_000)
    share = (room.opacity_logits > 0).float().mean()
    assert 0.76 < share < 0.78
    floaters = (room.surface == SURFACES).float().mean()
    assert 0.037 < floaters < 0.043
    assert (room.means >= 0).all()
    assert (room.means <= torch.tensor(ROOM)).all()
    first = room.log_scales[:, 0].exp()
    assert 0.01 <= first.min() < first.max() <= 0.05 + 1e-6
    torch.testing.assert_close(room.quats.norm(dim=-1), torch.ones(50_000))


def test_gaussians_lie_flat_on_the_walls() -> None:
    room = furnished_room(2000)
    projected = ops.project(*room.geometry, cameras(64, 48)[0], kind="disc", near=NEAR)
    wall = room.surface[projected.ids] == 2  # the side x = 0
    assert wall.any()
    towards = cameras(64, 48)[0].rotation @ torch.tensor([1.0, 0.0, 0.0])
    along = (projected.normals[wall] @ towards).abs()
    torch.testing.assert_close(along, torch.ones_like(along))


def test_every_camera_sees_much_of_the_room() -> None:
    room = furnished_room(2000)
    for camera in cameras(64, 48):
        assert (torch.tensor(ROOM) > camera.position).all()
        assert (camera.position > 0).all()
        assert len(ops.project(*room.geometry, camera, kind="ellipsoid", near=NEAR).ids) > 200


# ----------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_gives_our_image_and_gradients(name: PeerName, views: Views) -> None:
    peer = PEERS[name](views)
    for view in range(2):
        differences = agreement(views.forward_backward(view), peer.forward_backward(view))
        # The common form of plain C++ cuts a Gaussian off at three deviations, where alpha may still be 1 %.
        assert max(differences.values()) < (3e-2 if name == "plain" else 1e-4), differences


def test_a_folder_that_is_no_checkout_of_opensplat_is_an_error(tmp_path: Path, views: Views) -> None:
    with pytest.raises(
        UserError, match=r"is no checkout of OpenSplat: it has no rasterizer/gsplat-cpu/gsplat_cpu\.cpp"
    ):
        OpenSplat(views, tmp_path)


def test_the_query_pass_makes_gradients_for_the_visible_alone() -> None:
    room = furnished_room(TINY.count)
    *geometry, features, queries, _, _, _ = QueryView(TINY, room).forward_backward(0)
    seen = ops.project(*room.geometry, cameras(TINY.width, TINY.height)[0], kind="ellipsoid", near=NEAR).ids
    hidden = torch.ones(TINY.count, dtype=torch.bool).index_fill(0, seen, False)
    assert hidden.any()
    assert (features[hidden] == 0).all()
    assert (geometry[0][hidden] == 0).all()
    assert features[seen].any()
    assert queries.shape == (TINY.channels, QueryView.WIDTH)
    assert queries.any()


def test_peers_that_differ_are_seen_to_differ(views: Views) -> None:
    differences = agreement(views.forward_backward(0), views.forward_backward(1))
    assert min(differences.values()) > 0.1


def test_contributions_are_those_of_a_loop_over_pixels(views: Views) -> None:
    camera = views.cameras[0]
    projected = ops.project(*views.geometry, camera, kind="ellipsoid", near=NEAR)
    screen = projected.geometry[projected.geometry[:, 6].argsort(stable=True)].double()
    x, y, a, b, c, opacity, _ = screen.unbind(-1)
    count = 0
    blocks: set[tuple[int, int, int]] = set()
    for line in range(camera.height):
        for column in range(camera.width):
            dx, dy = x - (column + 0.5), y - (line + 0.5)
            alpha = (opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=0.99)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0)
            blended = ((alpha > 0) & ((1 - alpha).cumprod(0) > 1e-4)).nonzero()[:, 0].tolist()
            count += len(blended)
            blocks |= {(line // 4, column // 4, row) for row in blended}
    # Float32 may fall on the other side of a threshold here and there.
    assert contributions(views.geometry, camera, NEAR) == pytest.approx((count, len(blocks)), abs=3)
    ids, geometry = torch_pairs.project(views.geometry, camera, NEAR)
    assert torch.equal(ids, projected.ids)
    assert len(torch_pairs.list_pairs(geometry, camera.width, camera.height).row) == pytest.approx(count, abs=3)


# ---------------------------------------------------------------------------------------------------------- timing


def _samples(*values: float, others: float = 0.0) -> list[Sample | None]:
    return [Sample(value, value, others, 1) for value in values]


def test_everyone_has_a_turn_in_every_round() -> None:
    order: list[str] = []
    contestants = [Contestant(name, lambda _, n=name: order.append(n)) for name in "abc"]
    samples = measure(contestants, 1, Plan(rounds=10, max_rounds=3, seconds=0))
    assert [len(s) for s in samples.values()] == [3, 3, 3]
    assert order == list("abc" + "abc" + "bca" + "cab")  # the warm-up first


def test_a_slow_contestant_gets_one_turn() -> None:
    samples = measure([Contestant("slow", lambda _: sum(range(10**5)))], 1, Plan(10, 3, 0, limit=0))["slow"]
    assert [s is None for s in samples] == [False]


def test_contended_samples_are_dropped_or_marked() -> None:
    clean, busy = _samples(1, 2, 3), _samples(50, 60, others=0.5)
    assert summary(clean + busy) == (2, 1, 3, True)
    assert summary(busy) == (55, 50, 60, False)
    assert summary([]) is None


def test_ratios_are_taken_within_a_round() -> None:
    # Both twice as slow in the second round; in the third only one had a turn.
    assert ratio([*_samples(10, 20), None], _samples(1, 2, 99)) == (10, 10, 10, True)


# --------------------------------------------------------------------------------------------------------- results


def _case(channels: int, ours: float, peer: float) -> CaseResult:
    samples = {"both": _samples(ours), "plain both": _samples(peer)}
    case = Case("ellipsoid", 50_000, 320, 240, channels)
    return CaseResult(case, {"visible": 1.0, "tile_pairs": 1.0, "contributions": 1.0, "lane_use": 1.0}, samples)


def test_a_target_is_judged_by_its_worst_case() -> None:
    cases = [_case(3, 1, 30), _case(3, 2, 30)]
    results = Results({"threads": 2}, {}, {str(i): case for i, case in enumerate(cases)})
    worst, best = TARGETS[0].worst(results), TARGETS[0].best(results)
    assert worst is not None
    assert best is not None
    assert (worst[1].median, best[1].median) == (15, 30)
    assert not TARGETS[0].met(worst[1])
    assert TARGETS[0].met(best[1])


def test_channel_products_are_judged_by_the_slope_of_time_in_channels() -> None:
    work = {"visible": 1.0, "tile_pairs": 1.0, "contributions": 1e6, "lane_use": 0.5}
    found: dict[str, CaseResult] = {}
    for channels, forward, backward in ((32, 10.0, 20.0), (128, 12.0, 24.0)):
        samples = {"stage blend": _samples(forward), "stage blend_backward": _samples(backward)}
        samples |= {f"peak {bits} bit 2 thread": _samples(bits * 1e9) for bits in (256, 512)}
        case = Case("ellipsoid", 50_000, 320, 240, channels)
        found[case.key] = CaseResult(case, work, samples)
    ((wide, share),) = channel_shares(Results({"threads": 2}, {}, found))
    assert wide.case.channels == 128
    # 2 + 4 operations for each of 96 channels and 2e6 pixels of blocks, in 6 ms, of 512e9 a second.
    assert share.median == pytest.approx(100 * 6 * 96 * 2e6 / 6e-3 / 512e9)
    assert share.clean


def test_quick_defaults_give_way_to_options() -> None:
    arguments = bench_rasterizer.parse(["--quick", "--rounds", "7"])
    assert (arguments.gaussians, arguments.rounds) == ([50_000, 200_000], 7)
    assert bench_rasterizer.parse([]).gaussians[-1] == 1_000_000
    small, large = (Case("ellipsoid", n, 320, 240, 3) for n in arguments.gaussians)
    assert bench_rasterizer.peers_of(small, arguments) == list(PEERS)
    assert bench_rasterizer.peers_of(large, arguments) == ["plain", "plain_threaded"]


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench_rasterizer:begin -->\nold\n<!-- bench_rasterizer:end -->\nafter\n")
    options = ["--gaussians", "500", "--sizes", "32x24", "--views", "1", "--rounds", "1", "--max-rounds", "1"]
    options += ["--seconds", "0", "--out", str(tmp_path / "out.json"), "--page", str(page)]
    assert bench_rasterizer.main([*options, "--channels", "3", "--peers", "plain"]) == 0
    assert bench_rasterizer.main([*options, "--channels", "3", "4", "--peers", "plain", "--resume"]) == 0
    told = capsys.readouterr().out
    assert "1/1 ellipsoid/500/32x24/C3" in told
    assert "1/1 ellipsoid/500/32x24/C4" in told
    results = Results.load(tmp_path / "out.json")
    assert list(results.cases) == ["ellipsoid/500/32x24/C3", "ellipsoid/500/32x24/C4"]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert "plain C++" in text
    assert (tmp_path / "images" / "performance.svg").read_text().startswith("<svg")

    assert bench_rasterizer.main([*options, "--views", "2", "--resume"]) == 2
    assert "another --views" in capsys.readouterr().out


def test_peak_memory_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("<!-- bench_rasterizer:begin -->\n<!-- bench_rasterizer:end -->\n")
    options = ["--memory", "--gaussians", "20k", "--sizes", "160x120", "--queries", "64", "--peers"]
    options += ["--out", str(tmp_path / "out.json"), "--page", str(page)]
    assert bench_rasterizer.main(options) == 0
    ours, queries = Results.load(tmp_path / "out.json").memory
    assert (ours["who"], queries["who"]) == ("ours", "queries")
    assert ours["visible"] == queries["visible"] < 10_000
    for entry in (ours, queries):
        assert 4 * 160 * 120 * 64 <= entry["bytes"] < 100 * 2**20
    assert "| 20k |" in page.read_text()


def test_a_page_without_markers_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(UserError, match="has no lines <!-- x:begin -->"):
        report.splice(tmp_path / "page.md", "x", "text")
