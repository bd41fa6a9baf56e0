"""Runs of several real processes: disturbed in all ways, and gone on with by fewer of them on another mesh."""

import json
import shutil
from pathlib import Path

import fault_campaign
import numpy as np
import pytest
from disturbed_runs import SMALL, Life, Place, Settings

from tests.tolerances import OTHER_MESH

STEPS, FIRST = 8, 4


def test_disturbed_runs_end_as_undisturbed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Every fault at one moment, two in each run; the tool alone has any number of them."""
    count = -(-len(fault_campaign.FAULTS) // 2)
    with pytest.raises(SystemExit) as ended:
        fault_campaign.main(["--runs", str(count), "--processes", "2", "--seed", "1", "--faults", "2"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    inflicted = [fault.name for fault in fault_campaign.FAULTS if f"\n{fault.name} " in printed]
    assert len(inflicted) >= len(fault_campaign.FAULTS) - 2, "a run may be complete before its second fault"
    assert f"{count} of {count} runs ended as undisturbed ones do" in printed and printed.count("bit-identical") == count


def losses(workdir: Path) -> dict[int, float]:
    reports = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {report["step"]: report["loss"] for report in reports}


def run(place: Place, name: str, processes: int, devices: int, steps: int, mesh: Settings) -> dict[int, float]:
    settings = {
        "train.steps": steps,
        "train.log-every": 1,
        "train.checkpoint-every": FIRST,
        "data.data-dir": place.root / "data",
    }
    life = Life(place, place.root / name, processes, devices, {**SMALL, **settings, **mesh})
    assert life.end() == [0] * processes, "".join(life.lines)
    return losses(place.root / name)


def test_other_processes_on_another_mesh_go_on(tmp_path: Path) -> None:
    """Four processes with fsdp; then two with tensor, or one device: as one device from the beginning."""
    place = Place(tmp_path)
    straight = run(place, "straight", 1, 1, STEPS, {})
    four = run(place, "first", 4, 1, FIRST, {"mesh.data": 1, "mesh.fsdp": 4})
    for name in ("two", "one"):
        shutil.copytree(tmp_path / "first", tmp_path / name)
    two = run(place, "two", 2, 2, STEPS, {"mesh.tensor": 2})
    one = run(place, "one", 1, 1, STEPS, {})
    assert list(four) == list(range(1, FIRST + 1)) and list(one) == list(two) == list(straight) == list(range(1, STEPS + 1))
    for found in (four, two, one):
        np.testing.assert_allclose(list(found.values()), [straight[step] for step in found], rtol=OTHER_MESH)
