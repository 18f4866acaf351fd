"""The frozen policy that a KL term holds on to.

R1-Zero replaces it by the current policy every 400 steps (arXiv 2501.12948,
section 2.2): the policy may travel far, but not fast.
"""

from __future__ import annotations

import copy

from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.training import checkpoint
from r1lite.training.loop import Run


class Reference:
    """A copy of the starting policy, refreshed every `every` steps (0: never).

    Each refreshed copy is written beside the stage's checkpoint: a resumed run
    must hold on to the same policy as an undisturbed one.
    """

    def __init__(self, run: Run, name: str, policy: R1Model, every: int = 0) -> None:
        self._run, self._name, self._every = run, name, every
        self._made = 0
        self.model = copy.deepcopy(policy).to(run.team.device).eval()
        self.model.requires_grad_(False)
        # As the policy will be: of equal weights come equal log-probabilities.
        run.compute.prepare_(self.model)

    def at(self, step: int, policy: R1Model) -> R1Model:
        """The reference of `step`; `policy` is the model before that step.

        Raises:
            R1Error: a resumed run finds no copy of the reference that it needs.
        """
        wanted = step // self._every * self._every if self._every else 0
        if wanted == self._made:
            return self.model
        path = self._run.checkpoint_path(self._name) / f"reference-{wanted}.pt"
        if wanted == step:
            self.model.load_state_dict(self._run.team.whole(policy).state_dict())
            self._run.team.agree(
                lambda: checkpoint.save(
                    path, self._run.fingerprint, step, self.model, []
                )
            )
        elif checkpoint.load(path, self._run.fingerprint, self.model, [])[0] != wanted:
            raise R1Error(
                f"{path}: the reference of step {wanted} is missing, so this stage "
                "cannot go on; delete its checkpoint to start it again"
            )
        self._made = wanted
        return self.model
