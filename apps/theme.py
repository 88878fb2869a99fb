"""How the page looks: colours, type and measures as Gradio theme variables; `assets/page.css` uses nothing else.

The fonts are files that Gradio carries, so that no page load asks another machine for one (its 600 weights are subsets
without most letters: 400 and 700 are whole).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"

# A cool paper with dark green ink; one accent (fir), one signal (marker yellow, for the words an answer rests on).
_FIR = (
    "#eefaf6",
    "#d5f2e9",
    "#aae4d4",
    "#74cfb9",
    "#43b39b",
    "#229680",
    "#0f7566",
    "#0e6156",
    "#0e4e46",
    "#0c403a",
    "#062521",
)
_PAPER = (
    "#f7f8f6",
    "#eff1ee",
    "#dfe4e0",
    "#c6cec9",
    "#93a09a",
    "#5c6963",
    "#4a5752",
    "#37423e",
    "#222c29",
    "#171f1c",
    "#0f1513",
)
_CJK = ("PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Noto Sans CJK SC")


def theme() -> Any:
    """The `gr.themes.Base` of the page."""
    import gradio as gr
    from gradio.themes.utils.colors import Color
    from gradio.themes.utils.fonts import Font, LocalFont

    sans = [LocalFont("IBM Plex Sans", weights=(400, 700)), *map(Font, _CJK), Font("system-ui"), Font("sans-serif")]
    mono = [LocalFont("IBM Plex Mono", weights=(400, 700)), *map(Font, _CJK), Font("ui-monospace"), Font("monospace")]
    fir, paper = Color(*_FIR, name="fir"), Color(*_PAPER, name="paper")
    look = gr.themes.Base(primary_hue=fir, secondary_hue=fir, neutral_hue=paper, font=sans, font_mono=mono)
    light_dark = {
        "body_background_fill": ("*neutral_50", "*neutral_950"),
        "body_text_color": ("#16201d", "#e4ebe7"),
        "body_text_color_subdued": ("*neutral_500", "*neutral_400"),
        "background_fill_primary": ("#ffffff", "*neutral_900"),
        "background_fill_secondary": ("*neutral_100", "*neutral_800"),
        "border_color_primary": ("*neutral_200", "#2b3733"),
        "border_color_accent": ("*primary_300", "*primary_700"),
        "color_accent_soft": ("*primary_50", "#12322c"),
        "link_text_color": ("*primary_600", "*primary_300"),
        "link_text_color_hover": ("*primary_700", "*primary_200"),
        "link_text_color_visited": ("*primary_600", "*primary_300"),
        "link_text_color_active": ("*primary_700", "*primary_200"),
        "block_background_fill": ("*background_fill_primary", "*background_fill_primary"),
        "block_border_color": ("*border_color_primary", "*border_color_primary"),
        "block_label_text_color": ("*neutral_500", "*neutral_400"),
        "block_title_text_color": ("*neutral_500", "*neutral_400"),
        "input_background_fill": ("#ffffff", "*neutral_900"),
        "input_border_color": ("*neutral_300", "#3a4843"),
        "input_border_color_focus": ("*primary_500", "*primary_400"),
        "input_placeholder_color": ("*neutral_500", "*neutral_400"),
        "button_primary_background_fill": ("*primary_600", "*primary_400"),
        "button_primary_background_fill_hover": ("*primary_700", "*primary_300"),
        "button_primary_text_color": ("#ffffff", "#06201c"),
        "button_primary_border_color": ("*primary_600", "*primary_400"),
        "button_secondary_background_fill": ("#ffffff", "*neutral_900"),
        "button_secondary_background_fill_hover": ("*neutral_100", "*neutral_800"),
        "button_secondary_border_color": ("*neutral_300", "#3a4843"),
        "button_secondary_text_color": ("#16201d", "#e4ebe7"),
        "button_cancel_background_fill": ("#ffffff", "*neutral_900"),
        "button_cancel_background_fill_hover": ("#fdf0ec", "#3a1f18"),
        "button_cancel_border_color": ("#c0492b", "#e58a70"),
        "button_cancel_text_color": ("#a63c21", "#f0a48d"),
        "code_background_fill": ("*neutral_100", "*neutral_800"),
        "color_accent": ("*primary_600", None),
    }
    settings: dict[str, str] = {
        "body_text_size": "15px",
        "block_border_width": "1px",
        "block_radius": "10px",
        "block_shadow": "none",
        "block_label_shadow": "none",
        "block_title_text_weight": "400",
        "block_title_text_size": "13px",
        "block_label_text_size": "13px",
        "input_radius": "10px",
        "input_border_width": "1px",
        "input_shadow": "none",
        "input_shadow_focus": "0 0 0 3px *color_accent_soft",
        "input_text_size": "15px",
        "button_large_radius": "10px",
        "button_medium_radius": "10px",
        "button_small_radius": "8px",
        "button_border_width": "1px",
        "button_large_text_size": "15px",
        "button_large_text_weight": "600",
        "button_medium_text_weight": "600",
        "button_small_text_weight": "400",
        "button_primary_shadow": "none",
        "button_secondary_shadow": "none",
        "layout_gap": "14px",
        "form_gap_width": "0px",
    }
    for name, (light, dark) in light_dark.items():
        settings[name] = light
        if dark is not None:
            settings[name + "_dark"] = dark
    return look.set(**settings)


def css() -> str:
    """The page's own style sheet."""
    return (ASSETS / "page.css").read_text(encoding="utf-8")


def script() -> str:
    """What the browser does itself: open citations, show documents, keep a new question in view."""
    return (ASSETS / "page.js").read_text(encoding="utf-8")
