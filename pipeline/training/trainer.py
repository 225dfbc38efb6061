"""Ray Train's trainer without the helpers that a training of ours never asks.

Each of them is a process that imports Ray Train and Ray Data, two seconds of a core, at the very moment at which the workers start:
the keeper of datasets, of which there is none; and, on a cluster of our own, which has no machines to ask for and ends
with the run, what asks an autoscaler for machines and what cleans up after a driver that died. Ray has no switch
for them (2.60), so methods of its own are overridden; where a Ray to come doesn't call these, they start as they always did.
"""

from typing import Any

from ray.train.torch import TorchTrainer

NEVER_ASKED = ("DatasetsCallback",)
NEVER_ASKED_AT_HOME = ("PlacementGroupCleanerCallback",)


class Trainer(TorchTrainer):
    """As `TorchTrainer`, to which all arguments but the first are given.

    Args:
        at_home: the cluster is our own.
    """

    def __init__(self, at_home: bool, *arguments: Any, **named: Any) -> None:
        self._at_home = at_home
        super().__init__(*arguments, **named)

    def _create_default_callbacks(self) -> list[Any]:
        unwanted = NEVER_ASKED + (NEVER_ASKED_AT_HOME if self._at_home else ())
        made = super()._create_default_callbacks()   # type: ignore[misc]
        return [callback for callback in made if type(callback).__name__ not in unwanted]

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        policy = named.get("scaling_policy")
        if self._at_home and type(policy).__name__ == "FixedScalingPolicy":
            named["scaling_policy"] = _asking_nobody(policy)
        return super()._initialize_and_run_controller(**named)   # type: ignore[misc]


def _asking_nobody(policy: Any) -> Any:
    """The same policy, which asks no autoscaler. Its class is made here, so that it travels without this package."""

    class AskingNobody(type(policy)):                # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return AskingNobody(scaling_config=policy.scaling_config)
