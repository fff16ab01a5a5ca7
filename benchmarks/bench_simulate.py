"""Simulate 50,000 songs, 20,000 listeners and two million plays: seconds and peak memory."""
import json
import resource
import time
from dataclasses import replace

from sunorecsys.data.simulate import simulate
from sunorecsys.data.taste import REGIMES

def run(n_songs: int = 50_000, n_users: int = 20_000, plays_per_user_week: float = 9.5, seed: int = 0) -> dict:
    """Figures of one simulation; `peak_gib` is that of the whole process."""
    config = replace(REGIMES["easy"], n_songs=n_songs, n_users=n_users, plays_per_user_week=plays_per_user_week)
    begin = time.perf_counter()
    world = simulate(config, seed)
    seconds = time.perf_counter() - begin
    plays = int((world.interactions["interaction_type"] == "play").sum())
    return {"songs": n_songs, "listeners": n_users, "plays": plays, "events": len(world.interactions),
            "impressions": len(world.impressions), "seconds": round(seconds, 1),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}

if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
