"""The pictures of the documentation, made of a drawn CT: run with MEDSA_PICTURES=docs to renew them."""

import os
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser
from tests.browser.annotate import Panel, panel
from tests.browser.conftest import Site
from tests.browser.test_annotate import around, inside, open_flat

from medsa.demo.studies import abdomen, stow
from medsa.prompts.annotator import next_click

FOLDER = os.environ.get("MEDSA_PICTURES", "")
SIZE = (1280, 800)
pytestmark = pytest.mark.skipif(not FOLDER, reason="made when MEDSA_PICTURES names their folder")


def frame(window: Panel) -> Image.Image:
    """The page as it looks now, once it has settled."""
    window.page.wait_for_timeout(1500)
    with Image.open(BytesIO(window.page.screenshot())) as image:
        return image.convert("RGB")


def test_click_mask_correction_the_next_organs_and_saved(browser: Browser, site: Site) -> None:
    study, k = abdomen((256, 256, 40)), 21
    stow(site.orthanc.dicomweb_url, study.datasets)
    context = browser.new_context(viewport={"width": SIZE[0], "height": SIZE[1]})
    with panel(context, site.server.url) as window:
        open_flat(window, study)
        window.choose("liver")
        window.place(inside(study, "liver", k))
        frames = [frame(window)]
        window.click(inside(study, "liver", k))
        frames.append(frame(window))
        wanted = next_click(study.truth["liver"][:, :, k], window.mask("liver")[:, :, k])
        if wanted is not None:
            window.click((*wanted.index, k), modifier="" if wanted.positive else "Shift")
            frames.append(frame(window))
        window.choose("spleen")
        window.box(*around(study, "spleen", k))
        frames.append(frame(window))
        window.page.keyboard.press("a")
        for organ in ("right kidney", "left kidney", "aorta", "stomach"):
            if study.truth[organ][:, :, k].any():
                window.choose(organ)
                window.click(inside(study, organ, k))
        frames.append(frame(window))
        window.page.screenshot(path=Path(FOLDER) / "ohif-panel.png")
        window.save()
        frames.append(frame(window))
    context.close()
    small = [each.resize((960, 600), Image.Resampling.LANCZOS) for each in frames]
    colours = small[-1].quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    shown = [each.quantize(256, palette=colours, dither=Image.Dither.NONE) for each in small]
    durations = [1500, *[1800] * (len(shown) - 2), 3500]
    shown[0].save(
        Path(FOLDER) / "ohif.gif",
        save_all=True,
        append_images=shown[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )
