"""Captioners by ``kind``: where a step's text comes from. One file and one line each."""

from __future__ import annotations

CAPTIONERS = {
    "function": "onibi.actors.captioners.function:FunctionCaptioner",
    "info": "onibi.actors.captioners.info:InfoCaptioner",
    "minigrid": "onibi.actors.captioners.minigrid:MiniGridCaptioner",
    "nethack": "onibi.actors.captioners.nethack:NetHackCaptioner",
    "nethack_changes": "onibi.actors.captioners.nethack_changes:NetHackChangesCaptioner",
    "none": "onibi.actors.captioners.none:NoCaptioner",
    "text": "onibi.actors.captioners.text:TextCaptioner",
}
