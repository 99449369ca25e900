"""What actors compute for bonuses, by ``kind``. One file and one line each."""

from __future__ import annotations

ROW_BONUSES = {
    "e3b": "onibi.actors.bonuses.e3b:E3bBonus",
    "key_counts": "onibi.actors.bonuses.episodic_counts:KeyCountsBonus",
    "noveld": "onibi.actors.bonuses.episodic_counts:FirstVisits",
    "observation_counts": "onibi.actors.bonuses.episodic_counts:ObservationCountsBonus",
}
