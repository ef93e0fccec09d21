"""What the recipe inside a clip is good for: going on with it by the preset that suits it, making it again, comparing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, ramp

import t2vcli


def told(path: Path, recipe: Any) -> Path:
    """Makes a clip that holds such a recipe, whoever would write it."""
    return make_clip(
        path, ramp(2), "-movflags", "+use_metadata_tags", "-metadata", f"t2v={json.dumps(recipe, ensure_ascii=True)}"
    )


def made_by(preset: Any, **more: Any) -> dict[str, Any]:
    return {"format": 1, "command": "generate", "request": {"preset": preset, "prompt": "a boat"}, **more}


ENLARGED = {"command": "upscale", "request": {"preset": "demo-XL"}, "source": {"recipe": made_by("demo")}}


@pytest.mark.parametrize(
    ("recipe", "wish", "preset"),
    [
        (made_by("demo"), {"command": "upscale"}, "demo-XL"),
        (made_by("zeroscope-576w"), {"command": "upscale"}, "zeroscope-XL"),
        (made_by("ms-1.7b", upscale={"request": {"preset": "demo-XL"}}), {"command": "upscale"}, "demo-XL"),
        (ENLARGED, {"command": "upscale"}, "demo-XL"),
        (ENLARGED, {"extend": True}, "demo"),
        (made_by("demo"), {"extend": True}, "demo"),
        (made_by("demo"), {"init_video": True}, "demo"),
        (made_by("demo"), {"init_video": True, "preset": "ms-1.7b"}, "ms-1.7b"),
        (made_by("demo"), {"command": "upscale", "preset": "zeroscope-XL"}, "zeroscope-XL"),
        # Of what does not say, or says nonsense, the default
        (made_by("gone"), {"command": "upscale"}, "zeroscope-XL"),
        (made_by("./configs/demo.yaml"), {"command": "upscale"}, "zeroscope-XL"),
        (made_by(["demo"]), {"extend": True}, "ms-1.7b"),
        ({"request": "demo", "upscale": 3}, {"command": "upscale"}, "zeroscope-XL"),
        ({"command": "upscale", "source": []}, {"extend": True}, "ms-1.7b"),
    ],
)
def test_the_preset_that_suits_a_clip_is_taken_where_none_is_named(
    recipe: dict[str, Any], wish: dict[str, Any], preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = told(Path("boat.mp4"), recipe)
    given = {name: path if value is True else value for name, value in wish.items()}
    if wish.get("command") == "upscale":
        given["source"] = path
    work = t2vcli.work_for(t2vcli.Job.read(given))
    assert work.last.preset == preset
    said = f"preset {preset}, as boat.mp4 was made by"
    assert any(said in line for line in work.remarks) is (preset in ("demo", "demo-XL") or "576w" in str(recipe))
