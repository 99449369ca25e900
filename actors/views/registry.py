"""Views by ``kind``: what of a raw observation is stored and read by the network. One file and one line each."""

from __future__ import annotations

VIEWS = {
    "leaves": "onibi.actors.views.leaves:LeavesView",
    "minigrid": "onibi.actors.views.minigrid:MiniGridView",
    "nethack": "onibi.actors.views.nethack:NetHackView",
}
