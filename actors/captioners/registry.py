"""Captioners by ``kind``: where a step's text comes from. One file and one line each."""

from __future__ import annotations

CAPTIONERS = {
    "info": "onibi.actors.captioners.info:InfoCaptioner",
    "minigrid": "onibi.actors.captioners.minigrid:MiniGridCaptioner",
    "nethack": "onibi.actors.captioners.nethack:NetHackCaptioner",
    "nethack_changes": "onibi.actors.captioners.nethack_changes:NetHackChangesCaptioner",
    "none": "onibi.actors.captioners.none:NoCaptioner",
}
