"""Settings of both channels compared on the validation part of published workspaces: where the defaults come from.

    python benchmarks/channel_defaults.py WORKSPACE …

Prints NDCG@30 per workspace and setting. Only the validation part is asked; the test part of undated logs is barred.
"""

import sys

import pandas as pd

from sunorecsys.data.splits import training_tables
from sunorecsys.evaluation.protocol import answers, question, score_lists
from sunorecsys.recommenders.item_cf import ItemCF
from sunorecsys.recommenders.user_based import UserBased
from sunorecsys.workspace import Workspace

GRID = [
    *((ItemCF, {"top_k_per_seed": k, "shrinkage": s}) for k in (50, 100, 200) for s in (10.0, 30.0, 100.0)),
    *((UserBased, {"n_factors": n, "regularization": r, "alpha": a})
      for n, r, a in ((64, 1.0, 2.0), (32, 10.0, 1.0), (64, 10.0, 1.0), (32, 30.0, 1.0), (64, 30.0, 1.0), (64, 100.0, 1.0)))]


def main(workspaces: list[str]) -> None:
    """One row a setting, one column a workspace."""
    table = {}
    for root in workspaces:
        run = Workspace(root).published()
        if run is None:
            raise SystemExit(f"{root}: no published week; run 'sunorecsys weekly -w {root}' first")
        tables = training_tables(run, "validation")
        for cls, settings in GRID:
            model = cls(**settings).fit(**tables)
            q = question(run, model.x.users, model.x.items)
            t = score_lists({"x": answers(model, q, 30)}, q, (30,))[0]
            label = f"{cls.channel} " + " ".join(f"{k}={v:g}" for k, v in settings.items())
            table.setdefault(label, {})[Workspace(root).root.name] = t.loc[t["metric"] == "NDCG", "value"].iloc[0]
    print(pd.DataFrame(table).T.round(4).to_string())


if __name__ == "__main__":
    main(sys.argv[1:])
