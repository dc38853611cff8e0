"""The processors of Hugging Face's picture models, as the options that do the same."""

from __future__ import annotations

from typing import Any

import pytest

from wherry.models.registry.picture_steps import fit_options


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        # ViT
        (
            {"size": {"height": 224, "width": 224}, "resample": 2},
            {"image_size": [224, 224], "resample": "bilinear"},
        ),
        # ResNet: the shorter side becomes 256, then the middle
        (
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": 224},
            {"image_size": [224, 224], "image_fit": "crop", "crop_scale": 0.875},
        ),
        # EfficientNet: both sides become 256, then the middle
        (
            {
                "do_center_crop": True,
                "size": {"height": 256, "width": 256},
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            {"image_size": [224, 224], "crop_scale": 0.875, "resample": "bicubic"},
        ),
        # ConvNeXt
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
            {"image_size": [224, 224], "image_fit": "crop", "crop_scale": 0.875},
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, {"image_size": [384, 384]}),
        # MobileViT
        (
            {
                "do_center_crop": True,
                "do_flip_channel_order": True,
                "size": {"shortest_edge": 288},
                "crop_size": {"height": 256, "width": 256},
            },
            {
                "image_size": [256, 256],
                "image_fit": "crop",
                "crop_scale": 256 / 288,
                "channel_order": "BGR",
            },
        ),
        # older files
        ({"size": 224}, {"image_size": [224, 224]}),
        ({"do_center_crop": True, "size": 224}, {"image_size": [224, 224]}),
    ],
)
def test_each_family_of_processors_is_understood(steps: dict[str, Any], options: dict[str, Any]):
    assert fit_options(steps) == options


@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"size": {"shortest_edge": 800, "longest_edge": 1333}},
        {"size": {"height": "224", "width": -1}},
        {"do_center_crop": True, "crop_size": "224"},
        {"size": {"height": True, "width": True}, "resample": 9},
    ],
)
def test_what_says_no_size_leaves_it_to_the_graph(steps: dict[str, Any]):
    assert fit_options(steps) == {}
